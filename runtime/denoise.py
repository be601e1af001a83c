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
"""Returns the (guided) noise in ``latents``, given the timestep and the index of a step."""


@dataclass(frozen=True)
class Step:
    """The state after a denoising step: ``index`` of ``total``, counted from 0.

    ``latents`` is (N, C, h, w) float32, for a clip (1, frames, C, h, w). The loop goes on using the array:
    copy it before you change it.
    """

    index: int
    total: int
    timestep: float
    latents: FloatArray


def denoise(
    predict: Predict, sampler: Sampler, latents: FloatArray, generator: TorchGenerator
) -> Iterator[Step]:
    """Denoise ``latents``, already at the sampler's initial noise level, step by step.

    Samplers that add noise draw it from ``generator``. Raises :class:`WorkError` if the denoiser's output is
    not finite.
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
    """Return the noise after classifier-free guidance (arXiv:2207.12598), in diffusers' form.

    For a batch with the unconditional half first it is ``uncond + scale * (cond - uncond)``. If ``scale`` is
    None, the noise is returned unchanged.
    """
    if scale is None:
        return noise
    unconditional, conditional = np.split(noise, 2)
    return unconditional + scale * (conditional - unconditional)


def control_schedule(scale: FloatArray, steps: int, start: float, end: float, off: float) -> list[FloatArray]:
    """Return the control scale of each step: ``scale`` from ``start`` to ``end`` of the run, else ``off``.

    The run goes from 0 to 1. A step is inside if it neither begins before ``start`` nor ends after ``end``
    (diffusers' rule for its ControlNet pipelines).
    """
    outside = np.full_like(scale, off)
    return [scale if i / steps >= start and (i + 1) / steps <= end else outside for i in range(steps)]
