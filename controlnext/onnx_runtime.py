"""The library ONNX Runtime: loads it without its telemetry."""

from __future__ import annotations

import os
from typing import Any

from controlnext.optional import extra

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""The variable that ONNX Runtime reads when it is loaded; whoever wants its telemetry sets it to 0."""


def load_onnxruntime() -> Any:
    """Return the module ``onnxruntime``, which reports nothing over the network and keeps no file at home, as
    its later wheels (1.29) would. All code of this package gets it from here.

    Raises :class:`~controlnext.errors.MissingDependencyError` where it is not installed or cannot be loaded.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")
    with extra("cpu", "ONNX Runtime", otherwise='"controlnext[gpu]" for NVIDIA'):
        import onnxruntime
    return onnxruntime
