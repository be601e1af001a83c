"""Types that several parts of the package share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import DTypeLike, NDArray

FloatArray = NDArray[np.float32]
Feed = Mapping[str, np.ndarray]
"""Arrays by the names of a graph's inputs, or of its outputs."""
Progress = Callable[[str, float], None]
"""Called with the current task and the share of all work that is done, from 0 to 1."""


class Precision(StrEnum):
    """Arithmetic of a graph: a string, as users type it and manifests hold it, with its properties.

    ``weights``: the type that weights are stored as. ``calibrated``: sampling runs decide which of the
    denoiser's layers have this precision, and on which grids; all others are exported in the manifest's
    ``compute`` precision. ``integer_products``: layers multiply integers; ONNX Runtime has operators for that
    on processors only, and processors without VNNI need another form of the graph.
    """

    weights: np.dtype
    calibrated: bool
    integer_products: bool

    FP32 = "fp32", np.float32
    FP16 = "fp16", np.float16
    INT8 = "int8", np.int8, True, True

    def __new__(
        cls, name: str, weights: DTypeLike, calibrated: bool = False, integer_products: bool = False
    ) -> Precision:
        precision = str.__new__(cls, name)
        precision._value_ = name
        precision.weights = np.dtype(weights)
        precision.calibrated = calibrated
        precision.integer_products = integer_products
        return precision


COMPUTES = tuple(precision for precision in Precision if not precision.calibrated)
"""Precisions of the layers that a calibrated one leaves out: float32 for processors, float16 for GPUs."""
