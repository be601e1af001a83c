"""The library ONNX Runtime: loads it without its telemetry."""

from __future__ import annotations

import os
from typing import Any

from controlnext.optional import extra

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def load() -> Any:
    """Return the module ``onnxruntime``.

    Raises :class:`~controlnext.errors.MissingDependencyError` where it is not installed or cannot be loaded.
    """
    without_telemetry()
    with extra("cpu", "ONNX Runtime", otherwise='"controlnext[gpu]" for NVIDIA'):
        import onnxruntime
    return onnxruntime


def without_telemetry() -> None:
    """Have ONNX Runtime, if it is not loaded yet, report nothing over the network and keep no file at home.

    Its later wheels (1.29) do both. Whoever wants it sets the variable ``ORT_DISABLE_TELEMETRY`` to 0.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")
