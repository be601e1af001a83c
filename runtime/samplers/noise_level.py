"""The base of the Euler samplers: noise levels instead of alpha_bar."""

from __future__ import annotations

import numpy as np

from controlnext.runtime.samplers.base import Sampler
from controlnext.runtime.samplers.schedule import DoubleArray
from controlnext.types import FloatArray

_ONE = np.float32(1)


class NoiseLevelSampler(Sampler):
    """Base of the Euler samplers: samples are x0 + sigma * noise, scaled to unit variance as input."""

    sigmas: FloatArray
    """Noise level at each step and after the last one, (steps + 1,)."""

    def _grid(self) -> DoubleArray:
        """Return the spaced timesteps, rounded to float32 as diffusers does before it interpolates levels."""
        return self._spaced(self.num_inference_steps).astype(np.float32).astype(np.float64)

    def _set_schedule(self, timesteps: DoubleArray | FloatArray, sigmas: DoubleArray, last: float) -> None:
        self.timesteps = timesteps.astype(np.float32)
        self.sigmas = np.append(sigmas, last).astype(np.float32)
        self._require_finite(self.sigmas, _ONE / self.sigmas[: len(self.timesteps)])
        highest = self.sigmas.max()
        # the leading grid does not reach the last training timestep, where the sample is nearly all noise
        spread = highest if self.options["timestep_spacing"] != "leading" else np.sqrt(highest**2 + _ONE)
        self.init_noise_sigma = float(spread)

    def scale_model_input(self, sample: FloatArray, i: int) -> FloatArray:
        """Return `sample` scaled to unit variance at step `i`."""
        return sample / np.sqrt(self.sigmas[i] ** 2 + _ONE)

    def add_noise(self, sample: FloatArray, noise: FloatArray, i: int) -> FloatArray:
        """Return a clean `sample` with the noise of the level before step `i`."""
        return sample + noise * self.sigmas[i]

    def _clean_sample(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """Return x0; v_prediction by the scalings of arXiv:2206.00364, table 1, with sigma_data 1."""
        sigma = self.sigmas[i]
        if self.options["prediction_type"] == "epsilon":
            return sample - sigma * model_output
        if self.options["prediction_type"] == "v_prediction":
            variance = sigma**2 + _ONE
            return model_output * (-sigma / np.sqrt(variance)) + sample / variance
        return model_output

    def _euler(self, model_output: FloatArray, i: int, sample: FloatArray, target: np.float32) -> FloatArray:
        """Return the sample moved along its derivative at step `i` to the noise level `target`."""
        sigma = self.sigmas[i]
        derivative = (sample - self._clean_sample(model_output, i, sample)) / sigma
        return sample + derivative * (target - sigma)
