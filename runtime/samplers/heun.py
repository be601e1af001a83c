"""Heun's method along the probability-flow ODE: an Euler step, then the mean of the slopes at both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.noise_level import NoiseLevelSampler
from controlnext.runtime.samplers.schedule import (
    interpolated_sigmas,
    replacement_sigmas,
    sigma_table,
    timesteps_of,
)
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_TWO = np.float32(2)


class HeunSampler(NoiseLevelSampler):
    """A sampler equal to diffusers' `HeunDiscreteScheduler`.

    Each of n steps runs the denoiser twice, but the last, which ends without noise, once: as there, that
    makes 2 n - 1 steps here. The even ones go to the next noise level, the odd ones correct that.
    """

    name = "heun"
    has_history = True
    order = 2

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        table = sigma_table(self.options)
        timesteps = self._grid()
        sigmas = interpolated_sigmas(timesteps, table)
        replaced = replacement_sigmas(self.options, sigmas[0], sigmas[-1], self.num_inference_steps)
        if replaced is not None:
            sigmas, timesteps = replaced, timesteps_of(replaced, table)
        self._set_schedule(np.repeat(timesteps, 2)[1:], np.repeat(sigmas, 2)[1:], 0.0)

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        slope = (sample - self._limited(self._clean_sample(model_output, i, sample))) / self.sigmas[i]
        if i % 2 == 0:
            self._begun, self._slope = sample, slope
            self._width = self.sigmas[i + 1] - self.sigmas[i]
            return sample + slope * self._width
        return self._begun + (self._slope + slope) / _TWO * self._width

    def _limited(self, x0: FloatArray) -> FloatArray:
        if not self.options["clip_sample"]:
            return x0
        bound = np.float32(self.options["clip_sample_range"])
        return np.clip(x0, -bound, bound)
