"""The backends, as a table: what runs graphs, by the name that users give."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from controlnext.engines.base import Backend
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend

BACKENDS: Mapping[str, type[Backend]] = MappingProxyType(
    {backend.name: backend for backend in (TensorRtBackend, TensorRtRtxBackend, OrtBackend)}
)
"""By name, in the order in which ``auto`` asks them."""
