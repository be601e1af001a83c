"""Latent consistency sampling (arXiv:2310.04378): each step predicts the clean sample, then adds noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.consistency import ConsistencySampler
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_ONE = np.float32(1)
_SIGMA_DATA = np.float32(0.5)


class LCMSampler(ConsistencySampler):
    """A sampler equal to diffusers' `LCMScheduler`. It draws noise at every step but the last."""

    name = "lcm"

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        self._require_signal()
        # boundary conditions of the consistency function: at timestep 0 it returns the sample
        scaled = self.timesteps * np.float32(self.options["timestep_scaling"])
        spread = scaled**2 + _SIGMA_DATA**2
        self._skip, self._out = _SIGMA_DATA**2 / spread, scaled / np.sqrt(spread)
        reached = self.alpha_bar[1:]
        self._signal = np.append(np.sqrt(reached), _ONE)
        self._noise_scales = dict(enumerate(np.sqrt(_ONE - reached)))

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        x0 = self._limited(self._clean_sample(model_output, i, sample))
        return self._signal[i] * (self._out[i] * x0 + self._skip[i] * sample)
