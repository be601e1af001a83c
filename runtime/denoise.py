"""The denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import WorkError
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers import Sampler

FloatArray = NDArray[np.float32]
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Step:
    """What is known after a denoising step: ``index`` of ``total``, counted from 0.

    ``latents`` (N, C, h, w) float32 are the loop's own: copy them before changing anything.
    """

    index: int
    total: int
    timestep: float
    latents: FloatArray


def denoise(
    run: Run,
    sampler: Sampler,
    latents: FloatArray,
    constants: Mapping[str, np.ndarray],
    control_scales: Sequence[FloatArray],
    guidance_scale: float | None,
    generator: TorchGenerator,
) -> Iterator[Step]:
    """Denoise ``latents`` (N, C, h, w), already at the sampler's initial noise level, step by step.

    With guidance the batch is doubled, unconditional half first, and the noise is
    ``uncond + guidance_scale * (cond - uncond)`` (arXiv:2207.12598 in diffusers' terms).

    Args:
        run: the denoiser: inputs by name -> ``noise_pred``.
        constants: the inputs that stay the same at every step, for the whole (doubled) batch.
        control_scales: ``control_scale`` of every step, (batch,) float32 each.
        guidance_scale: None for no guidance.
        generator: where samplers that add noise draw it.

    Raises:
        WorkError: the denoiser gave a number that is not finite.
    """
    total = len(sampler.timesteps)
    for index, timestep in enumerate(sampler.timesteps):
        sample = sampler.scale_model_input(latents, index)
        if guidance_scale is not None:
            sample = np.concatenate([sample, sample])
        changing = {
            "sample": sample,
            "timestep": np.full(len(sample), timestep, np.float32),
            "control_scale": control_scales[index],
        }
        noise = run({**constants, **changing})["noise_pred"]
        if guidance_scale is not None:
            unconditional, conditional = np.split(noise, 2)
            noise = unconditional + guidance_scale * (conditional - unconditional)
        if not np.isfinite(noise).all():
            raise WorkError(
                f"the denoiser's output at step {index + 1} of {total} is not finite: float16 overflows with"
                " these weights; export them with --precision fp32"
            )
        latents = sampler.step(noise, index, latents, generator)
        yield Step(index, total, float(timestep), latents)


def control_schedule(scale: FloatArray, steps: int, start: float, end: float) -> list[FloatArray]:
    """``scale`` at the steps within the interval from ``start`` to ``end`` of the run, 0 at the others.

    A step counts as within when it neither begins before ``start`` nor ends after ``end``, the run being from
    0 to 1 (diffusers' rule for its ControlNet pipelines).
    """
    off = np.zeros_like(scale)
    return [scale if i / steps >= start and (i + 1) / steps <= end else off for i in range(steps)]
