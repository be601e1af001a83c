"""The base of the multistep solvers: schedule, conversion of the denoiser's output, history."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from controlnext.runtime.samplers.base import Sampler
from controlnext.runtime.samplers.schedule import (
    interpolated_sigmas,
    log_snr,
    replacement_sigmas,
    sigma_table,
    timesteps_of,
    variance_preserving,
)
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray


@dataclass(frozen=True)
class Update:
    """The update of a solver: a linear combination whose weights depend on the schedule alone.

    The result is sample * x + base * m[0] + sum of differences[k] * (m[k + 1] - m[0]); m are the outputs.
    """

    sample: np.float32
    base: np.float32
    differences: tuple[np.float32, ...] = ()

    def apply(self, sample: FloatArray, outputs: Sequence[FloatArray]) -> FloatArray:
        """Return the updated sample. All arrays are float32 of one shape; extra `outputs` are ignored."""
        result = self.sample * sample + self.base * outputs[0]
        for weight, output in zip(self.differences, outputs[1:], strict=False):
            result += weight * (output - outputs[0])
        return result


class MultistepSampler(Sampler):
    """Base of the solvers that extrapolate from earlier outputs; one object serves one run."""

    has_history = True
    ends_at_replaced: ClassVar[bool] = False
    """Whether final_sigmas_type sigma_min repeats the last Karras or exponential level, if there is one; else
    it is the lowest level of training."""
    sigmas: FloatArray
    """Noise level at each step and after the last one, (steps + 1,)."""

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        self._set_schedule(sigma_table(self.options))
        self._alphas, self._stds = variance_preserving(self.sigmas)
        self._lambdas = log_snr(self._alphas, self._stds)
        self._outputs: list[FloatArray] = []

    def add_noise(self, sample: FloatArray, noise: FloatArray, i: int) -> FloatArray:
        """Return a clean `sample` with the noise of the level before step `i`."""
        return self._alphas[i] * sample + self._stds[i] * noise

    def _set_schedule(self, table: FloatArray) -> None:
        options, steps = self.options, self.num_inference_steps
        replaced = replacement_sigmas(options, float(table[-1]), float(table[0]), steps)
        if replaced is None:
            timesteps = self._spaced(steps + 1, self._usable_timesteps()).round()
            sigmas = interpolated_sigmas(timesteps, table)
        else:
            timesteps, sigmas = timesteps_of(replaced, table), replaced
            if self._rounds_timesteps():
                timesteps = timesteps.round()
        lowest = sigmas[-1] if replaced is not None and self.ends_at_replaced else table[0]
        last = 0.0 if options["final_sigmas_type"] == "zero" else lowest
        self.sigmas = np.append(sigmas, last).astype(np.float32)
        self.timesteps = np.trunc(timesteps).astype(np.float32)

    def _usable_timesteps(self) -> int:
        """Return the number of training timesteps, from the lowest, that the grid may use."""
        return int(self.options["num_train_timesteps"])

    def _rounds_timesteps(self) -> bool:
        """Return whether the timesteps of replaced noise levels are rounded (else truncated)."""
        return bool(self.options["use_karras_sigmas"])

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        return self._advance(self._converted(model_output, i, sample), i, sample)

    @abstractmethod
    def _converted(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """Return the denoiser's output as the quantity that the solver integrates."""

    @abstractmethod
    def _advance(self, output: FloatArray, i: int, sample: FloatArray) -> FloatArray: ...

    def _clean_sample(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        """Return the predicted x0, thresholded if the options request it."""
        alpha, std = self._alphas[i], self._stds[i]
        if self.options["prediction_type"] == "epsilon":
            x0 = (sample - std * model_output) / alpha
        elif self.options["prediction_type"] == "v_prediction":
            x0 = alpha * sample - std * model_output
        else:
            x0 = model_output
        return self._thresholded(x0)

    def _remember(self, output: FloatArray) -> None:
        self._outputs = [output, *self._outputs][: self.options["solver_order"]]
