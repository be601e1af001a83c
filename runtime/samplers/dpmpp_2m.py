"""DPM-Solver++ (multistep, data prediction) of arXiv:2211.01095."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.multistep import MultistepSampler, Update
from controlnext.runtime.samplers.schedule import cumulative_alphas, log_snr
from controlnext.types import FloatArray

_HALF, _ONE = np.float32(0.5), np.float32(1)
_LOW_ORDER_STEPS = 15


class DPMPP2MSampler(MultistepSampler):
    """A sampler equal to diffusers' `DPMSolverMultistepScheduler` with algorithm_type dpmsolver++.

    The order is 2 by default, or 1 or 3; diffusers treats higher ones as 3.

    sigma_min and sigma_max are not arguments of that class, but diffusers keeps them from the configuration
    and its Karras and exponential schedules read them.
    """

    name = "dpmpp_2m"

    def __init__(self, config: Mapping[str, Any], num_inference_steps: int) -> None:
        super().__init__(config, num_inference_steps)
        with np.errstate(all="ignore"):  # what is not finite is refused in _update
            self._updates = [self._update(i) for i in range(len(self.timesteps))]

    def _usable_timesteps(self) -> int:
        alpha_bar = cumulative_alphas(self.options)
        lambdas = log_snr(np.sqrt(alpha_bar), np.sqrt(_ONE - alpha_bar))
        noisiest = int(np.searchsorted(lambdas[::-1], self.options["lambda_min_clipped"]))
        return super()._usable_timesteps() - noisiest

    def _rounds_timesteps(self) -> bool:
        return super()._rounds_timesteps() and self.options["beta_schedule"] != "squaredcos_cap_v2"

    def _converted(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        return self._clean_sample(model_output, i, sample)

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
        return min(self.options["solver_order"], i + 1, 2 if left == 2 and short else 3)

    def _update(self, i: int) -> Update:
        order = self._order(i)
        # steps in lambda: to the next noise level, then backwards from this one
        h, *back = (self._lambdas[i + 1 - k] - self._lambdas[i - k] for k in range(order))
        target = self._alphas[i + 1]
        decay = np.float32(np.exp(np.float64(-h))) - _ONE
        linear = target * (decay / h + _ONE)
        differences: tuple[np.float32, ...] = ()
        if order == 2:
            first = linear if self.options["solver_type"] == "heun" else -_HALF * (target * decay)
            differences = (-first * h / back[0],)
        elif order == 3:
            square = -(target * ((decay + h) / h**2 - _HALF))
            differences = _third_order(back[0] / h, back[1] / h, linear, square)
        update = Update(self._stds[i + 1] / self._stds[i], -(target * decay), differences)
        self._require_finite(update.sample, update.base, differences)
        return update


def _third_order(
    r0: np.float32, r1: np.float32, linear: np.float32, square: np.float32
) -> tuple[np.float32, np.float32]:
    """Return the weights on m1 - m0 and m2 - m0 from those on the first and second derivative."""
    # derivatives by divided differences: near = (m0 - m1) / r0, far = (m1 - m2) / r1
    second = (linear * r0 + square) / (r0 + r1)
    near, far = (linear + second) / r0, -second / r1
    return far - near, -far
