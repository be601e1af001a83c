"""The controls of a bundle: what each is given, and how strong it is over a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.families import Variant
from controlnext.runtime.denoise import control_schedule
from controlnext.runtime.request import CommonRequest
from controlnext.tensor_spec import control_inputs
from controlnext.types import FloatArray


class Controls:
    """The controls of a denoiser that has inputs of these ``names``; ``len`` tells how many there are."""

    def __init__(self, names: Iterable[str], variant: Variant) -> None:
        self._inputs = control_inputs(names)
        self._variant = variant

    def __len__(self) -> int:
        return len(self._inputs)

    def each(self, name: str, value: Any) -> list[Any]:
        """One value for each control; with several controls ``value`` has to be a list of as many."""
        if len(self) == 1:
            return [value]
        if not isinstance(value, (list, tuple)) or len(value) != len(self):
            raise InputError(
                f"this bundle has {len(self)} controls; give {name} as a list of as many", argument=name
            )
        return list(value)

    def each_scale(self, scale: Any) -> list[Any]:
        """As :meth:`each`, but a single number serves all."""
        several = isinstance(scale, (list, tuple)) or np.ndim(scale) > 0
        return self.each("control_scale", scale) if several else [scale] * len(self)

    def images(self, arrays: Sequence[FloatArray]) -> dict[str, FloatArray]:
        """The control image inputs, of one array for each control."""
        return {control.image: array for control, array in zip(self._inputs, arrays, strict=True)}

    def schedules(
        self, scales: Sequence[FloatArray], request: CommonRequest, steps: int, guided: bool
    ) -> dict[int, dict[str, FloatArray]]:
        """The control scale inputs by the step from which on they hold.

        ``scales``: of each control, a row for every result.
        """
        factor = np.float32(self._variant.unconditional_scale)
        span, off = (request.control_start, request.control_end), self._variant.off_scale
        schedules = [
            control_schedule(
                np.concatenate([factor * scale, scale] if guided else [scale]), steps, *span, off
            )
            for scale in scales
        ]
        names = [control.scale for control in self._inputs]
        rows = list(zip(*schedules, strict=True))
        return {
            index: dict(zip(names, row, strict=True))
            for index, row in enumerate(rows)
            if index == 0 or any(new is not old for new, old in zip(row, rows[index - 1], strict=True))
        }
