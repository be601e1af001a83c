"""The base of DDIM, DDPM, LCM and TCD: integer timesteps with their alpha_bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.errors import InputError
from controlnext.runtime.samplers.base import Sampler
from controlnext.runtime.samplers.schedule import cumulative_alphas
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_ONE = np.float32(1)


class AlphaBarSampler(Sampler):
    """Base of the samplers with integer timesteps and their alpha_bar, whose x0 may be clipped."""

    limits_steps = True

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        steps = self.num_inference_steps
        visited = self._spaced(steps).round().astype(np.int64)
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

    def add_noise(self, sample: FloatArray, noise: FloatArray, i: int) -> FloatArray:
        """Return a clean `sample` with the noise of the timestep of step `i`."""
        return np.sqrt(self.alpha_bar[i]) * sample + np.sqrt(_ONE - self.alpha_bar[i]) * noise

    def _clean_sample(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """Return the predicted x0 before clipping."""
        signal, noise = np.sqrt(self.alpha_bar[i]), np.sqrt(_ONE - self.alpha_bar[i])
        if self.options["prediction_type"] == "epsilon":
            return (sample - noise * model_output) / signal
        if self.options["prediction_type"] == "v_prediction":
            return signal * sample - noise * model_output
        return model_output

    def _predicted_noise(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """Return the noise that the denoiser predicts: clipping x0 does not change it."""
        signal, noise = np.sqrt(self.alpha_bar[i]), np.sqrt(_ONE - self.alpha_bar[i])
        if self.options["prediction_type"] == "epsilon":
            return model_output
        if self.options["prediction_type"] == "v_prediction":
            return signal * model_output + noise * sample
        return (sample - signal * model_output) / noise

    def _limited(self, x0: FloatArray) -> FloatArray:
        if self.options["clip_sample"] and not self.options["thresholding"]:
            bound = np.float32(self.options["clip_sample_range"])
            return np.clip(x0, -bound, bound)
        return self._thresholded(x0)

    def _require_divisors(self) -> None:
        self._require_finite(_ONE / (_ONE - self.alpha_bar))
        self._require_signal()

    def _require_signal(self) -> None:
        if self.options["prediction_type"] == "epsilon":
            self._require_finite(_ONE / self.alpha_bar)
