"""Clips while they are denoised, in windows where they are long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from controlnext.runtime.denoise import Denoising
from controlnext.runtime.guidance import guide
from controlnext.tensor_spec import control_inputs
from controlnext.types import Feed, FloatArray
from controlnext.windows import Window


@dataclass(eq=False, kw_only=True)
class ClipDenoising(Denoising):
    """A run in windows, whose noise is averaged where they overlap.

    ``image``: the latents of the reference image, for each row. ``guidance``: that of each frame,
    (1, frames, 1, 1, 1). ``control``: returns the control inputs of a
    window; None if they are bound.
    """

    windows: Sequence[Window]
    image: FloatArray
    strengths: list[dict[str, FloatArray]]
    guidance: FloatArray
    control: Callable[[Window], Feed] | None

    def _inputs(self, number: int, sample: FloatArray) -> Feed:
        window = self.windows[number]
        rows = np.concatenate([sample[:, window.start : window.stop]] * self.parts[number].rows)
        still = np.broadcast_to(self.image[-len(rows) :, None], rows.shape)
        return {
            "sample": np.concatenate([rows, still], axis=2),
            "timestep": np.full(len(rows), self.timestep, np.float32),
            **self.strengths[self.index],
            **self._control_inputs(number),
        }

    def _control_inputs(self, number: int) -> Feed:
        """Return what is not bound of the control in a window; a shallow step may read none of it."""
        reads = self.parts[number].bound.engine.shallow_inputs
        if self.control is None or (self.shallow and not control_inputs(reads)):
            return {}
        return self.control(self.windows[number])

    def _guided(self, predictions: Sequence[FloatArray]) -> FloatArray:
        total: FloatArray = np.zeros_like(self.latents)
        count: FloatArray = np.zeros((1, total.shape[1], 1, 1, 1), np.float32)
        guided = self.index < self.guided_steps
        for window, prediction in zip(self.windows, predictions, strict=True):
            part = slice(window.start, window.stop)
            noise = guide(prediction, self.guidance[:, part] if guided else None)
            total[:, window.first : window.stop] += noise[:, window.first - window.start :]
            count[:, window.first : window.stop] += 1
        return total / count
