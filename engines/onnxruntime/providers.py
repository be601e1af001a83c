"""ONNX Runtime's execution providers: what of it computes, on the processor or on a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlnext.engines.base import device_kind
from controlnext.errors import InputError
from controlnext.types import Precision

CPU, CUDA, TENSORRT, TENSORRT_RTX = "cpu", "cuda", "tensorrt", "tensorrt-rtx"


@dataclass(frozen=True)
class Provider:
    """An execution provider. ``names``: ONNX Runtime's, its own first, then of those for what it cannot do.

    ``device``: the kind of device that it computes on, ``"cpu"`` or ``"cuda"``. ``builds``: it builds engines
    of its own from the graph, for the sizes that it sees. ``parts``, ``integer_parts``: it has the operators
    of ONNX Runtime's form of a denoiser (docs/backends.md), and those that multiply integers.
    """

    names: tuple[str, ...]
    device: str
    builds: bool = False
    parts: bool = False
    integer_parts: bool = False

    def runs_parts(self, precision: Precision) -> bool:
        """Whether it has the operators of ONNX Runtime's form of a graph of that precision."""
        return self.integer_parts if precision.integer_products else self.parts


PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        CPU: Provider(("CPUExecutionProvider",), "cpu", parts=True, integer_parts=True),
        CUDA: Provider(("CUDAExecutionProvider", "CPUExecutionProvider"), "cuda", parts=True),
        TENSORRT: Provider(
            ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
            "cuda",
            builds=True,
        ),
        TENSORRT_RTX: Provider(
            ("NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"), "cuda", builds=True
        ),
    }
)
"""By the name that users give; without one the first of the device."""


def choose_provider(available: Collection[str], device: str, provider: str) -> str:
    """The name in :data:`PROVIDERS` that ``device`` and ``provider`` ask for; each may be ``"auto"``.

    ``available``: what this ONNX Runtime has. Raises :class:`~controlnext.errors.InputError` for an unknown
    device or provider, one that it has not, and two that contradict each other.
    """
    kind = device_kind(device)
    if provider not in ("auto", *PROVIDERS):
        raise InputError(
            f"unknown provider {provider!r}; accepted: auto, {', '.join(PROVIDERS)}", argument="provider"
        )
    there = [name for name, one in PROVIDERS.items() if one.names[0] in available]
    wish = f"device {device}" if provider == "auto" else f"provider {provider}"
    if CUDA not in there and (provider == CUDA or (provider == "auto" and kind == "cuda")):
        raise InputError(
            f"{wish} was asked for, but this ONNX Runtime has no CUDA; give device cpu, or run"
            ' pip uninstall onnxruntime, then pip install "controlnext[gpu]"'
        )
    if provider == "auto":
        return CUDA if kind == "cuda" or (kind == "auto" and CUDA in there) else CPU
    if provider not in there:
        raise InputError(
            f"{wish} was asked for, but this ONNX Runtime has {', '.join(there)}; give one of"
            " these, or install another build of it"
        )
    if kind not in ("auto", PROVIDERS[provider].device):
        raise InputError(
            f"provider {provider} does not run on device {device}; leave one of them out", argument="provider"
        )
    return provider


def provider_options(
    provider: str, index: int, precision: Precision, kept: Path | None
) -> list[tuple[str, dict[str, Any]]]:
    """The ``providers`` argument of a session, on the GPU of that number.

    ``kept``: a directory in which a provider may leave what is slow to make.
    """
    device = {"device_id": index}
    options: dict[str, dict[str, Any]] = {
        # TF32 keeps 10 bits: float32 is what was asked for
        CUDA: {**device, "use_tf32": 0},
        TENSORRT: {
            **device,
            "trt_fp16_enable": precision != Precision.FP32,
            "trt_int8_enable": precision.integer_products,
        },
        TENSORRT_RTX: dict(device),
    }
    if kept is not None:
        options[TENSORRT] |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(kept)}
        options[TENSORRT_RTX] |= {"nv_runtime_cache_path": str(kept)}
    own = {PROVIDERS[name].names[0]: given for name, given in options.items()}
    return [(name, own.get(name, {})) for name in PROVIDERS[provider].names]
