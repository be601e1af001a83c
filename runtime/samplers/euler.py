"""Euler steps along the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.noise_level import NoiseLevelSampler
from controlnext.runtime.samplers.schedule import (
    DoubleArray,
    interpolated_sigmas,
    linspace,
    replacement_sigmas,
    rounded_log,
    sigma_table,
    timesteps_of,
)
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_ONE = np.float32(1)


class EulerSampler(NoiseLevelSampler):
    """A sampler equal to diffusers' `EulerDiscreteScheduler` (without churn, which pipelines do not use)."""

    name = "euler"
    further_sigmas = 1

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        options, steps = self.options, self.num_inference_steps
        table = sigma_table(options)
        if asked.sigmas is not None:
            self._set_given(asked.sigmas.astype(np.float32).astype(np.float64), table)
            return
        grid = self._grid()
        timesteps: DoubleArray | FloatArray = grid
        if options["interpolation_type"] == "linear":
            sigmas = interpolated_sigmas(grid, table)
        else:
            sigmas = np.exp(linspace(np.log(table[-1]), np.log(table[0]), steps + 1).astype(np.float64))
        replaced = replacement_sigmas(options, sigmas[0], sigmas[-1], steps)
        if replaced is not None:
            sigmas, timesteps = replaced, timesteps_of(replaced, table)
        last = table[0] if options["final_sigmas_type"] == "sigma_min" else 0.0
        self._set_schedule(self._told(timesteps, sigmas), sigmas, last)

    def _set_given(self, sigmas: DoubleArray, table: FloatArray) -> None:
        """Set the schedule to the noise levels of a call, the last of which follows the last step."""
        timesteps = timesteps_of(sigmas[:-1], table)
        self._set_schedule(self._told(timesteps, sigmas[:-1]), sigmas[:-1], sigmas[-1])

    def _told(self, timesteps: DoubleArray | FloatArray, sigmas: DoubleArray) -> DoubleArray | FloatArray:
        """Return what the denoiser is told for `timesteps`: these, or of some the noise level's logarithm."""
        options = self.options
        if options["timestep_type"] == "continuous" and options["prediction_type"] == "v_prediction":
            return np.float32(0.25) * rounded_log(sigmas.astype(np.float32))
        return timesteps

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        return self._euler(model_output, i, sample, self.sigmas[i + 1])
