"""Images while they are denoised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controlnext.runtime.denoise import Denoising
from controlnext.runtime.guidance import guide
from controlnext.types import Feed, FloatArray


@dataclass(eq=False, kw_only=True)
class ImageDenoising(Denoising):
    """A run with the control scales of each step, and the guidance scale of those that are guided."""

    strengths: list[dict[str, FloatArray]]
    guidance: float

    def _inputs(self, number: int, sample: FloatArray) -> Feed:
        rows = self.parts[number].rows
        return {
            "sample": np.concatenate([sample] * (rows // len(sample))),
            "timestep": np.full(rows, self.timestep, np.float32),
            **self.strengths[self.index],
        }

    def _guided(self, predictions: Sequence[FloatArray]) -> FloatArray:
        (noise,) = predictions
        return guide(noise, self.guidance if self.index < self.guided_steps else None)
