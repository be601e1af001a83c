"""The denoising loop, guidance, and the schedule of the control."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from controlnext.errors import WorkError
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers import Sampler
from controlnext.types import FloatArray

Predict = Callable[[FloatArray, float, int], FloatArray]
"""The (guided) noise in ``latents`` at a timestep, which is that of the step of this index."""


@dataclass(frozen=True)
class Step:
    """What is known after a denoising step: ``index`` of ``total``, counted from 0.

    ``latents`` (N, C, h, w), of a clip (1, frames, C, h, w), float32, are the loop's own: copy them before
    changing anything.
    """

    index: int
    total: int
    timestep: float
    latents: FloatArray


def denoise(
    predict: Predict, sampler: Sampler, latents: FloatArray, generator: TorchGenerator
) -> Iterator[Step]:
    """Denoise ``latents``, already at the sampler's initial noise level, step by step.

    ``generator`` is where samplers that add noise draw it. Raises :class:`WorkError` where the denoiser gave
    a number that is not finite.
    """
    total = len(sampler.timesteps)
    for index, timestep in enumerate(sampler.timesteps):
        noise = predict(sampler.scale_model_input(latents, index), float(timestep), index)
        if not np.isfinite(noise).all():
            raise WorkError(
                f"the denoiser's output at step {index + 1} of {total} is not finite: float16 overflows with"
                " these weights; export them with `precision` fp32"
            )
        latents = sampler.step(noise, index, latents, generator)
        yield Step(index, total, float(timestep), latents)


def guide(noise: FloatArray, scale: float | FloatArray | None) -> FloatArray:
    """Classifier-free guidance (arXiv:2207.12598 in diffusers' terms): of a batch with the unconditional half
    first, ``uncond + scale * (cond - uncond)``. The noise as it is where ``scale`` is None."""
    if scale is None:
        return noise
    unconditional, conditional = np.split(noise, 2)
    return unconditional + scale * (conditional - unconditional)


def control_schedule(scale: FloatArray, steps: int, start: float, end: float, off: float) -> list[FloatArray]:
    """``scale`` at the steps within the interval from ``start`` to ``end`` of the run, ``off`` at the others.

    A step counts as within when it neither begins before ``start`` nor ends after ``end``, the run being from
    0 to 1 (diffusers' rule for its ControlNet pipelines).
    """
    outside = np.full_like(scale, off)
    return [scale if i / steps >= start and (i + 1) / steps <= end else outside for i in range(steps)]
