"""The bases of the DPM-Solver++ samplers (arXiv:2211.01095), which integrate the predicted clean sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from controlnext.runtime.samplers.multistep import MultistepSampler, Update
from controlnext.runtime.samplers.schedule import cumulative_alphas, log_snr
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
_LOW_ORDER_STEPS = 15


@dataclass(frozen=True)
class StepWeights:
    """Weights of a step from noise level s to t, as wide as h = lambda[t] - lambda[s].

    The result is sample * x + base * D0, for higher orders plus a weight times the derivatives D1 and D2 of
    the output in units of h: half * D1 (midpoint), or linear * D1 + square * D2. ``noise`` is the factor of
    the noise, 0 for the deterministic solver.
    """

    h: np.float32
    sample: np.float32
    base: np.float32
    half: np.float32
    linear: np.float32
    square: np.float32
    noise: np.float32


class DPMSolver(MultistepSampler):
    """Base of the DPM-Solver++ samplers.

    sigma_min and sigma_max are not arguments of diffusers' classes, but it keeps them from the configuration
    and the Karras and exponential schedules read them.
    """

    def _usable_timesteps(self) -> int:
        alpha_bar = cumulative_alphas(self.options)
        lambdas = log_snr(np.sqrt(alpha_bar), np.sqrt(_ONE - alpha_bar))
        noisiest = int(np.searchsorted(lambdas[::-1], self.options["lambda_min_clipped"]))
        return super()._usable_timesteps() - noisiest

    def _converted(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        return self._clean_sample(model_output, i, sample)

    def _weights(self, start: int, end: int, *, stochastic: bool) -> StepWeights:
        """Return the weights from noise level `start` to `end`, in diffusers' order of float32 operations."""
        h = self._lambdas[end] - self._lambdas[start]
        width = _TWO * h if stochastic else h
        target, ratio = self._alphas[end], self._stds[end] / self._stds[start]
        decay = _exp(-width) - _ONE
        # diffusers' sign for the stochastic solver
        half = -_HALF if stochastic else _HALF
        return StepWeights(
            h=h,
            sample=ratio * _exp(-h) if stochastic else ratio,
            base=-(target * decay),
            half=-_HALF * (target * decay),
            linear=target * (decay / width + _ONE),
            square=-(target * ((decay + width) / width**2 - half)),
            noise=self._stds[end] * np.sqrt(-decay) if stochastic else np.float32(0),
        )

    def _set_updates(self, starts: Sequence[int], *, stochastic: bool) -> None:
        """Set the update of each step, which goes on from the noise level in ``starts``."""
        weights = [self._weights(start, i + 1, stochastic=stochastic) for i, start in enumerate(starts)]
        self._updates = [self._update(i, step) for i, step in enumerate(weights)]
        for update in self._updates:
            self._require_finite(update.sample, update.base, update.differences)
        if stochastic:
            self._noise_scales = {i: step.noise for i, step in enumerate(weights)}
            self._require_finite(list(self._noise_scales.values()))

    @abstractmethod
    def _update(self, i: int, step: StepWeights) -> Update:
        """Return the update of step `i` on the outputs that it uses."""


class DPMMultistepSampler(DPMSolver):
    """Base of the two samplers of diffusers' `DPMSolverMultistepScheduler`.

    The order is 2 by default, or 1 or 3; diffusers treats higher ones as 3.
    """

    stochastic: ClassVar[bool] = False
    """Whether it solves the stochastic equation, and draws noise at every step."""

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        self._set_updates(range(len(self.timesteps)), stochastic=self.stochastic)

    def _rounds_timesteps(self) -> bool:
        return super()._rounds_timesteps() and self.options["beta_schedule"] != "squaredcos_cap_v2"

    def _advance(self, output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        self._remember(output)
        return self._updates[i].apply(sample, self._outputs)

    def _order(self, i: int) -> int:
        """Return the order of step `i`: limited by the history, and towards the end of short runs."""
        left = len(self.timesteps) - i
        short = self.options["lower_order_final"] and len(self.timesteps) < _LOW_ORDER_STEPS
        if left == 1 and (
            short or self.options["euler_at_final"] or self.options["final_sigmas_type"] == "zero"
        ):
            return 1
        # steps before the first are not taken
        known = max(1, i + 1 - self.begin)
        return min(self.options["solver_order"], known, 2 if left == 2 and short else 3)

    def _update(self, i: int, step: StepWeights) -> Update:
        order = self._order(i)
        # earlier steps in lambda, backwards from this one
        back = [self._lambdas[i + 1 - k] - self._lambdas[i - k] for k in range(1, order)]
        differences: tuple[np.float32, ...] = ()
        if order == 2:
            first = step.linear if self.options["solver_type"] == "heun" else step.half
            differences = (-first * step.h / back[0],)
        elif order == 3:
            r0, r1 = back[0] / step.h, back[1] / step.h
            differences = _third_order(r0, r1, step.linear, step.square)
        return Update(step.sample, step.base, differences)


def _exp(value: np.float32) -> np.float32:
    """Return the exponential, computed in double precision: nearer to torch's than NumPy's own."""
    return np.float32(np.exp(np.float64(value)))


def _third_order(
    r0: np.float32, r1: np.float32, linear: np.float32, square: np.float32
) -> tuple[np.float32, np.float32]:
    """Return the weights on m1 - m0 and m2 - m0 from those on the first and second derivative."""
    # derivatives by divided differences: near = (m0 - m1) / r0, far = (m1 - m2) / r1
    second = (linear * r0 + square) / (r0 + r1)
    near, far = (linear + second) / r0, -second / r1
    return far - near, -far
