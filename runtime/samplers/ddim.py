"""DDIM: the deterministic sampler of arXiv:2010.02502 (eta 0, as pipelines run it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.alpha_bar import AlphaBarSampler
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_ONE = np.float32(1)


class DDIMSampler(AlphaBarSampler):
    """A sampler equal to diffusers' `DDIMScheduler` with eta 0."""

    name = "ddim"

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        self._require_divisors()
        # the step always has this width, whatever the grid's distance to the next timestep
        reached = self._visited - self.options["num_train_timesteps"] // self.num_inference_steps
        table = self._alpha_bar_table
        final = _ONE if self.options["set_alpha_to_one"] else table[0]
        self.next_alpha_bar = np.where(reached >= 0, table[np.maximum(reached, 0)], final)

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        x0 = self._clean_sample(model_output, i, sample)
        noise = self._predicted_noise(model_output, i, sample)
        signal_share, noise_share = np.sqrt(self.next_alpha_bar[i]), np.sqrt(_ONE - self.next_alpha_bar[i])
        return signal_share * self._limited(x0) + noise_share * noise
