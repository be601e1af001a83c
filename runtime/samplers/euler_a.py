"""Euler ancestral steps: down past the next noise level, then noise back up to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.noise_level import NoiseLevelSampler
from controlnext.runtime.samplers.schedule import interpolated_sigmas, sigma_table
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray


class EulerAncestralSampler(NoiseLevelSampler):
    """A sampler equal to diffusers' `EulerAncestralDiscreteScheduler`.

    It draws noise at every step, also at the last one, where it is multiplied by 0.
    """

    name = "euler_a"

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        timesteps = self._grid()
        self._set_schedule(timesteps, interpolated_sigmas(timesteps, sigma_table(self.options)), 0.0)
        variance = self.sigmas**2
        # the next level's variance is split: what is kept going down, and what is added as noise
        added = np.sqrt(variance[1:] * (variance[:-1] - variance[1:]) / variance[:-1])
        # from a level of thousands, rounding may leave less than nothing, which is refused
        self._targets = np.sqrt(variance[1:] - added**2)
        self._require_finite(self._targets)
        self._noise_scales = dict(enumerate(added))

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        return self._euler(model_output, i, sample, self._targets[i])
