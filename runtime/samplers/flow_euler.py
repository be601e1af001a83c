"""Euler steps of flow matching (arXiv:2403.03206): samples are (1 - sigma) * x0 + sigma * noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import InputError
from controlnext.runtime.samplers.base import Sampler
from controlnext.runtime.samplers.schedule import DoubleArray, replacement_sigmas
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_ONE = np.float32(1)
Float = TypeVar("Float", np.float32, np.float64)


class FlowEulerSampler(Sampler):
    """A sampler equal to diffusers' `FlowMatchEulerDiscreteScheduler` without shifting by image size."""

    name = "flow_euler"
    sigmas: FloatArray
    """Share of noise at each step and after the last one, (steps + 1,)."""

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        sigmas, last = self._schedule().astype(np.float32), 0
        self._require_finite(sigmas)
        if self.options["invert_sigmas"]:
            sigmas, last = _ONE - sigmas, 1
        self.timesteps = sigmas * np.float32(self.options["num_train_timesteps"])
        self.sigmas = np.append(sigmas, np.float32(last))
        if self.options["stochastic_sampling"]:
            self._noise_scales = dict(enumerate(self.sigmas[1:]))

    def _schedule(self) -> DoubleArray:
        """Return the noise shares of the steps, highest first."""
        options, train = self.options, self.options["num_train_timesteps"]
        if self.asked.sigmas is not None:
            if self.asked.sigmas[0] > 1:
                raise InputError(
                    f"sigmas begins at {self.asked.sigmas[0]:g}; sampler '{self.name}' takes shares of noise"
                    " from 0 to 1",
                    argument="sigmas",
                )
            sigmas = self._shifted(self.asked.sigmas.astype(np.float32)).astype(np.float64)
        else:
            first, last = self._shifted(np.array([train, 1], np.float32) / np.float32(train)).tolist()
            # diffusers shifts the ends of the range, and then all of it
            sigmas = self._shifted(np.linspace(first * train, last * train, self.num_inference_steps) / train)
        if options["shift_terminal"]:
            sigmas = 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - options["shift_terminal"]))
        replaced = replacement_sigmas(options, sigmas[0], sigmas[-1], self.num_inference_steps)
        return sigmas if replaced is None else replaced

    def _shifted(self, sigmas: NDArray[Float]) -> NDArray[Float]:
        shift = self.options["shift"]
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    def add_noise(self, sample: FloatArray, noise: FloatArray, i: int) -> FloatArray:
        """Return a clean `sample` mixed with as much `noise` as there is before step `i`."""
        return self.sigmas[i] * noise + (_ONE - self.sigmas[i]) * sample

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        sigma, target = self.sigmas[i], self.sigmas[i + 1]
        if self.options["stochastic_sampling"]:
            return (_ONE - target) * (sample - sigma * model_output)
        return sample + (target - sigma) * model_output
