"""DDPM: ancestral sampling of arXiv:2006.11239."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.alpha_bar import AlphaBarSampler
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_ONE = np.float32(1)
_SMALLEST_VARIANCE = np.float32(1e-20)


class DDPMSampler(AlphaBarSampler):
    """A sampler equal to diffusers' `DDPMScheduler`.

    It draws noise at every step whose timestep is above 0; with steps_offset 1 that includes the last step,
    where fixed_small then adds next to nothing (1e-10 times the noise). Learned variances are refused: the
    denoisers here predict none. So is fixed_large_log, which gives NaN in diffusers.
    """

    name = "ddpm"

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        self._require_divisors()
        reached = np.append(self._visited[1:], -1)
        next_alpha_bar = np.where(reached >= 0, self._alpha_bar_table[reached], _ONE)
        alpha = self.alpha_bar / next_alpha_bar
        beta, beta_bar, next_beta_bar = _ONE - alpha, _ONE - self.alpha_bar, _ONE - next_alpha_bar
        # mean of the posterior q(x[t-1] | x[t], x0): equation 7
        self._x0_share = np.sqrt(next_alpha_bar) * beta / beta_bar
        self._sample_share = np.sqrt(alpha) * next_beta_bar / beta_bar
        small = np.maximum(next_beta_bar / beta_bar * beta, _SMALLEST_VARIANCE)
        # null is fixed_small, and fixed_small_log the same deviation by way of the logarithm
        deviations = np.sqrt(beta if self.options["variance_type"] == "fixed_large" else small)
        self._noise_scales = {i: deviations[i] for i, t in enumerate(self._visited) if t > 0}

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        x0 = self._limited(self._clean_sample(model_output, i, sample))
        return self._x0_share[i] * x0 + self._sample_share[i] * sample
