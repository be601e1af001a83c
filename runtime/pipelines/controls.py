"""The controls of a bundle: the image and the strength of each over a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.families import Variant
from controlnext.runtime.request import CommonRequest
from controlnext.tensor_spec import control_inputs
from controlnext.types import FloatArray


def one_or_all(values: list[Any]) -> Any:
    """Return the one value, or the list of several: a bundle with one control does not accept a list."""
    return values[0] if len(values) == 1 else values


class Controls:
    """The controls of a denoiser whose inputs have these ``names``; ``len`` is their number."""

    def __init__(self, names: Iterable[str], variant: Variant) -> None:
        self._inputs = control_inputs(names)
        self._variant = variant

    def __len__(self) -> int:
        return len(self._inputs)

    def each(self, name: str, value: Any) -> list[Any]:
        """Return one value for each control; for several controls ``value`` must be a list of them."""
        if len(self) == 1:
            return [value]
        if not isinstance(value, (list, tuple)) or len(value) != len(self):
            raise InputError(
                f"this bundle has {len(self)} controls; {name} must be a list of {len(self)} entries",
                argument=name,
            )
        return list(value)

    def each_scale(self, scale: Any) -> list[Any]:
        """Return one scale for each control as :meth:`each` does; a single number applies to all."""
        several = isinstance(scale, (list, tuple)) or np.ndim(scale) > 0
        return self.each("control_scale", scale) if several else [scale] * len(self)

    def images(self, arrays: Sequence[FloatArray]) -> dict[str, FloatArray]:
        """Return the control image inputs by name, from one array for each control."""
        return {control.image: array for control, array in zip(self._inputs, arrays, strict=True)}

    def schedules(
        self, scales: Sequence[FloatArray], request: CommonRequest, steps: int, guided: int
    ) -> list[dict[str, FloatArray]]:
        """Return the control scale inputs of each step, of which the first ``guided`` have two halves.

        ``scales``: for each control an array with one row for each result.
        """
        factor = np.float32(self._variant.unconditional_scale)
        span, off = (request.control_start, request.control_end), self._variant.off_scale
        schedules = [
            [
                rows if step < guided else rows[-len(scale) :]
                for step, rows in enumerate(
                    control_schedule(np.concatenate([factor * scale, scale]), steps, *span, off)
                )
            ]
            for scale in scales
        ]
        names = [control.scale for control in self._inputs]
        return [dict(zip(names, row, strict=True)) for row in zip(*schedules, strict=True)]


def control_schedule(scale: FloatArray, steps: int, start: float, end: float, off: float) -> list[FloatArray]:
    """Return the control scale of each step: ``scale`` from ``start`` to ``end`` of the run, else ``off``.

    The run goes from 0 to 1. A step is inside if it neither begins before ``start`` nor ends after ``end``
    (diffusers' rule for its ControlNet pipelines).
    """
    outside = np.full_like(scale, off)
    return [scale if i / steps >= start and (i + 1) / steps <= end else outside for i in range(steps)]
