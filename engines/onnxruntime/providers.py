"""ONNX Runtime's execution providers, which compute on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlnext.engines.devices import device_kind
from controlnext.errors import InputError
from controlnext.types import Precision

CPU, CUDA, TENSORRT, TENSORRT_RTX = "cpu", "cuda", "tensorrt", "tensorrt-rtx"


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    ``names``: ONNX Runtime's name of it, followed by its fallbacks for operators that it lacks. ``device``:
    the kind of device that it computes on, ``"cpu"`` or ``"cuda"``. ``builds``: it builds engines from the
    graph for each new size. ``parts``, ``integer_parts``: it has the operators of ONNX Runtime's form of a
    denoiser (docs/backends.md), and those that multiply integers.
    """

    names: tuple[str, ...]
    device: str
    builds: bool = False
    parts: bool = False
    integer_parts: bool = False

    def runs_parts(self, precision: Precision) -> bool:
        """Return whether it has the operators of ONNX Runtime's form of a graph of that precision."""
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
"""The providers by the value of ``provider``; the default is the first of the device."""


def choose_provider(available: Collection[str], device: str, provider: str) -> str:
    """Return the key of :data:`PROVIDERS` for ``device`` and ``provider``; each may be ``"auto"``.

    ``available``: the providers of this ONNX Runtime. Raises :class:`~controlnext.errors.InputError` for an
    unknown device or provider, for one that is not available, and if the two contradict each other.
    """
    kind = device_kind(device)
    if provider not in ("auto", *PROVIDERS):
        raise InputError(
            f"unknown provider {provider!r}; accepted: auto, {', '.join(PROVIDERS)}", argument="provider"
        )
    present = [name for name, one in PROVIDERS.items() if one.names[0] in available]
    argument, value = ("device", device) if provider == "auto" else ("provider", provider)
    requested = f"{argument} {value}"
    if CUDA not in present and (provider == CUDA or (provider == "auto" and kind == "cuda")):
        raise InputError(
            f"{requested} was requested, but this ONNX Runtime has no CUDA; set `device` to cpu, or run"
            ' pip uninstall onnxruntime, then pip install "controlnext[gpu]"',
            argument=argument,
        )
    if provider == "auto":
        return CUDA if kind == "cuda" or (kind == "auto" and CUDA in present) else CPU
    if provider not in present:
        raise InputError(
            f"{requested} was requested, but this ONNX Runtime has {', '.join(present)}; use one of"
            " these, or install another build of it"
        )
    if kind not in ("auto", PROVIDERS[provider].device):
        raise InputError(
            f"provider {provider} does not run on device {device}; remove one of the two", argument="provider"
        )
    return provider


def provider_options(
    provider: str, index: int, precision: Precision, directory: Path | None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the ``providers`` argument of a session on GPU number ``index``.

    ``directory``: where a provider may cache files that are slow to make; None for nowhere.
    """
    device = {"device_id": index}
    options: dict[str, dict[str, Any]] = {
        # TF32 keeps 10 bits of the mantissa, float32 has 23
        CUDA: {**device, "use_tf32": 0},
        TENSORRT: {
            **device,
            "trt_fp16_enable": precision != Precision.FP32,
            "trt_int8_enable": precision.integer_products,
        },
        TENSORRT_RTX: dict(device),
    }
    if directory is not None:
        options[TENSORRT] |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(directory)}
        options[TENSORRT_RTX] |= {"nv_runtime_cache_path": str(directory)}
    own = {PROVIDERS[name].names[0]: given for name, given in options.items()}
    return [(name, own.get(name, {})) for name in PROVIDERS[provider].names]
