"""The forms in which ONNX Runtime multiplies int8 on this processor."""

from __future__ import annotations

from functools import cache

import numpy as np

from controlnext.bundle.format import PARTS, UINT8_PARTS
from controlnext.engines.onnxruntime import library
from controlnext.optional import is_installed
from controlnext.types import Precision

UINT8_INT8, UINT8_UINT8 = "uint8 x int8", "uint8 x uint8"
"""The forms: activations by weights. The first is faster but not right on every processor."""

_MATMUL_INTEGER = (
    b'\x08\x08:>\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\t\n\x01a\x12\x04\n\x02\x08\x02'
    b"Z\t\n\x01b\x12\x04\n\x02\x08\x03b\t\n\x01y\x12\x04\n\x02\x08\x06B\x04\n\x00\x10\r"
)
"""A graph of one node, ``y = MatMulInteger(a, b)``, of a uint8 and an int8 matrix; a test rebuilds it."""
_TERMS = 64


@cache
def int8_form() -> str:
    """Return the fastest form in which MatMulInteger is right on this processor. Needs ONNX Runtime.

    x86 processors without VNNI add two products of uint8 and int8 in 16 bits and saturate. This runs ONNX
    Runtime on the largest numbers, because its choice of kernels is what counts, and a processor's name does
    not always tell its features.
    """
    onnxruntime = library.load()

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(_MATMUL_INTEGER, options, providers=["CPUExecutionProvider"])
    largest = {"a": np.full((1, _TERMS), 255, np.uint8), "b": np.full((_TERMS, 1), 127, np.int8)}
    (product,) = session.run(None, largest)
    return UINT8_INT8 if product == 255 * 127 * _TERMS else UINT8_UINT8


def known_int8_form() -> str:
    """Return :func:`int8_form`, or an empty text if ONNX Runtime is not installed."""
    return int8_form() if is_installed("onnxruntime") else ""


def parts_for(precision: Precision) -> tuple[str, str, str]:
    """Return the files of a denoiser's prologue, step and shallow step that are right on this processor."""
    return UINT8_PARTS if precision.integer_products and int8_form() == UINT8_UINT8 else PARTS
