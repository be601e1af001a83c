"""Where another backend than ONNX Runtime is measured to be the faster one on a processor.

Rule: a row is entered only where a step was measured to take at most 0.9 of ONNX Runtime's time, with every
base model that was measured. docs/backends.md has the measurements. ``auto`` follows the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlnext import processor
from controlnext.engines import registry
from controlnext.engines.base import Backend
from controlnext.types import Precision

LARGEST_SHARE = 0.9
"""The largest share of ONNX Runtime's time that a row may have: less is not worth other numbers."""


@dataclass(frozen=True)
class Faster:
    """A backend that is faster for graphs of ``precision`` on processors with all ``instructions``.

    ``instructions``: by the names of :func:`controlnext.processor.instruction_sets`. ``share``: the time of
    its step in ONNX Runtime's, the largest of the base models that were measured.
    """

    backend: str
    precision: Precision
    instructions: frozenset[str]
    share: float


FASTER = (
    # SD1.5 and SDXL at 512 x 512: 2.21 of 2.93 s, 2.32 of 3.81 s
    Faster("openvino", Precision.INT8, frozenset({"amx_int8"}), 0.76),
)


def faster_backend(precision: Precision) -> type[Backend] | None:
    """Return the installed backend that is faster than ONNX Runtime for graphs of ``precision`` on this
    processor; None if there is none."""
    here = processor.instruction_sets()
    for row in FASTER:
        backend = registry.BACKENDS[row.backend]
        if row.precision is precision and row.instructions <= here and backend.available():
            return backend
    return None
