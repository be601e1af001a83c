"""DDIM: the deterministic sampler of arXiv:2010.02502 (eta 0, as pipelines run it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.runtime.samplers.base import Sampler
from controlnext.runtime.samplers.schedule import cumulative_alphas, spaced_timesteps
from controlnext.types import FloatArray

_ONE = np.float32(1)


class AlphaBarSampler(Sampler):
    """Base of DDIM and DDPM: whole timesteps with their alpha_bar, and a predicted x0 that may be limited."""

    limits_steps = True

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        super().__init__(config, num_inference_steps)
        steps = self.num_inference_steps
        visited = spaced_timesteps(self.options, steps, points=steps).round().astype(np.int64)
        table = cumulative_alphas(self.options)
        if visited.max() >= len(table):
            raise InputError(
                f"the first timestep of {steps} steps is {visited.max()}, beyond the {len(table)} training "
                "timesteps: ask for fewer steps, or export with `scheduler` steps_offset=0",
                argument="num_inference_steps",
            )
        self.timesteps = visited.astype(np.float32)
        self._visited, self._alpha_bar_table = visited, table
        # timestep -1 (see spaced_timesteps) reads the last entry, as in diffusers
        self.alpha_bar = table[visited]

    def _clean_sample(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """The predicted x0 before any limiting."""
        signal, noise = np.sqrt(self.alpha_bar[i]), np.sqrt(_ONE - self.alpha_bar[i])
        if self.options["prediction_type"] == "epsilon":
            return (sample - noise * model_output) / signal
        if self.options["prediction_type"] == "v_prediction":
            return signal * sample - noise * model_output
        return model_output

    def _limited(self, x0: FloatArray) -> FloatArray:
        if self.options["clip_sample"] and not self.options["thresholding"]:
            bound = np.float32(self.options["clip_sample_range"])
            return np.clip(x0, -bound, bound)
        return self._thresholded(x0)

    def _require_divisors(self) -> None:
        with np.errstate(divide="ignore"):
            self._require_finite(_ONE / (_ONE - self.alpha_bar))
            if self.options["prediction_type"] == "epsilon":
                self._require_finite(_ONE / self.alpha_bar)


class DDIMSampler(AlphaBarSampler):
    """Equals diffusers' `DDIMScheduler` with eta 0."""

    name = "ddim"

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        super().__init__(config, num_inference_steps)
        self._require_divisors()
        # the step is always this wide, whatever distance the grid has to the next timestep
        reached = self._visited - self.options["num_train_timesteps"] // self.num_inference_steps
        table = self._alpha_bar_table
        final = _ONE if self.options["set_alpha_to_one"] else table[0]
        self.next_alpha_bar = np.where(reached >= 0, table[np.maximum(reached, 0)], final)

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        x0 = self._clean_sample(model_output, i, sample)
        noise = self._predicted_noise(model_output, i, sample)
        signal_share, noise_share = np.sqrt(self.next_alpha_bar[i]), np.sqrt(_ONE - self.next_alpha_bar[i])
        return signal_share * self._limited(x0) + noise_share * noise

    def _predicted_noise(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """The noise as the denoiser sees it: limiting x0 does not change it."""
        signal, noise = np.sqrt(self.alpha_bar[i]), np.sqrt(_ONE - self.alpha_bar[i])
        if self.options["prediction_type"] == "epsilon":
            return model_output
        if self.options["prediction_type"] == "v_prediction":
            return signal * model_output + noise * sample
        return (sample - signal * model_output) / noise
