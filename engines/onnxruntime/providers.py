"""ONNX Runtime's execution providers: what of it computes, on the processor or on a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlnext.engines.base import device_index
from controlnext.errors import InputError
from controlnext.types import Precision

CPU, CUDA, TENSORRT, TENSORRT_RTX = "cpu", "cuda", "tensorrt", "tensorrt-rtx"

PROVIDERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        CPU: ("CPUExecutionProvider",),
        CUDA: ("CUDAExecutionProvider", "CPUExecutionProvider"),
        TENSORRT: ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
        TENSORRT_RTX: ("NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"),
    }
)
"""ONNX Runtime's names; each is followed by those that take what it cannot do."""

OWN_ENGINES = (TENSORRT, TENSORRT_RTX)
"""These build engines of their own from the graph, for the sizes that they see."""


def runs_parts(provider: str, precision: Precision) -> bool:
    """Whether a provider has the operators of ONNX Runtime's form of a graph of that precision
    (docs/backends.md): those of integers are on processors alone."""
    return provider == CPU or (provider == CUDA and not precision.integer_products)


def choose_provider(available: Collection[str], device: str, provider: str) -> str:
    """The name in :data:`PROVIDERS` that ``device`` and ``provider`` ask for; each may be ``"auto"``.

    ``available``: what this ONNX Runtime has. Raises :class:`~controlnext.errors.InputError` for an unknown
    device or provider, one that it has not, and two that contradict each other.
    """
    on_gpu = device_index(device) is not None
    if provider not in ("auto", *PROVIDERS):
        raise InputError(
            f"unknown provider {provider!r}; accepted: auto, {', '.join(PROVIDERS)}", argument="provider"
        )
    there = [name for name, (first, *_) in PROVIDERS.items() if first in available]
    wish = f"device {device}" if provider == "auto" else f"provider {provider}"
    if CUDA not in there and (provider == CUDA or (provider == "auto" and on_gpu)):
        raise InputError(
            f"{wish} was asked for, but this ONNX Runtime has no CUDA; give device cpu, or run"
            ' pip uninstall onnxruntime, then pip install "controlnext[gpu]"'
        )
    if provider == "auto":
        return CUDA if on_gpu or (device == "auto" and CUDA in there) else CPU
    if provider not in there:
        raise InputError(
            f"{wish} was asked for, but this ONNX Runtime has {', '.join(there)}; give one of"
            " these, or install another build of it"
        )
    if device != "auto" and on_gpu != (provider != CPU):
        raise InputError(
            f"provider {provider} does not run on device {device}; leave one of them out", argument="provider"
        )
    return provider


def provider_options(
    provider: str, index: int, precision: Precision, kept: Path | None
) -> list[tuple[str, dict[str, Any]]]:
    """The ``providers`` argument of a session, on the GPU of that number.

    ``kept``: a folder in which a provider may leave what is slow to make.
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
    own = {PROVIDERS[name][0]: given for name, given in options.items()}
    return [(name, own.get(name, {})) for name in PROVIDERS[provider]]
