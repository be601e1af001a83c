"""The table of backends, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from controlnext.engines.base import Backend
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.openvino.backend import OpenVinoBackend, OpenVinoBf16Backend
from controlnext.engines.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend

BACKENDS: Mapping[str, type[Backend]] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            TensorRtBackend,
            TensorRtRtxBackend,
            OrtBackend,
            OpenVinoBackend,
            OpenVinoBf16Backend,
        )
    }
)
"""The backends by name, in the order in which ``auto`` tries them."""
