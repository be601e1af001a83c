"""Images while they are denoised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controlnext.runtime.denoise import Denoising
from controlnext.runtime.guidance import guide
from controlnext.runtime.samplers import Sampler
from controlnext.types import Feed, FloatArray


@dataclass(frozen=True)
class Kept:
    """The part of an image that a run keeps: all but ``mask`` (N, 1, h, w), which is 1 where it is made anew.

    ``image``: the image's latents; ``noise``: that of the run; (N, C, h, w).
    """

    image: FloatArray
    noise: FloatArray
    mask: FloatArray

    def blended(self, latents: FloatArray, sampler: Sampler, place: int) -> FloatArray:
        """Return latents with the image outside the mask, with the noise before step ``place``; none at the
        end of the run."""
        ended = place == len(sampler.timesteps)
        outside = self.image if ended else sampler.add_noise(self.image, self.noise, place)
        return (np.float32(1) - self.mask) * outside + self.mask * latents


@dataclass(eq=False, kw_only=True)
class ImageDenoising(Denoising):
    """A run with the control scales of each step, and the guidance scale of those that are guided.

    ``outside``: what it keeps of the image that it starts from.
    """

    strengths: list[dict[str, FloatArray]]
    guidance: float
    outside: Kept | None = None

    def _inputs(self, number: int, sample: FloatArray) -> Feed:
        rows = self.parts[number].rows
        return {
            "sample": np.concatenate([sample] * (rows // len(sample))),
            "timestep": np.full(rows, self.timestep, np.float32),
            **self.strengths[self.index],
        }

    def _kept(self, latents: FloatArray) -> FloatArray:
        if self.outside is None:
            return latents
        return self.outside.blended(latents, self.sampler, self.place + 1)

    def _guided(self, predictions: Sequence[FloatArray]) -> FloatArray:
        (noise,) = predictions
        return guide(noise, self.guidance if self.index < self.guided_steps else None)
