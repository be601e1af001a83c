"""UniPC: the unified predictor-corrector of arXiv:2302.04867, in its B(h) form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.multistep import MultistepSampler, Update
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_HALF, _ONE = np.float32(0.5), np.float32(1)


class UniPCSampler(MultistepSampler):
    """A sampler equal to diffusers' `UniPCMultistepScheduler` (with its own predictor only)."""

    name = "unipc"
    ends_at_replaced = True

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        self._predictors: list[Update] = []
        self._correctors: list[Update | None] = []
        self._last_sample: FloatArray | None = None
        for i in range(len(self.timesteps)):
            self._add_updates(i)

    def _converted(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        if self.options["predict_x0"]:
            return self._clean_sample(model_output, i, sample)
        alpha, std = self._alphas[i], self._stds[i]
        if self.options["prediction_type"] == "epsilon":
            return model_output
        if self.options["prediction_type"] == "v_prediction":
            return alpha * model_output + std * sample
        return (sample - alpha * model_output) / std

    def _advance(self, output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        corrector = self._correctors[i - 1] if i > 0 else None
        if corrector is not None and self._last_sample is not None:
            previous, *older = self._outputs
            sample = corrector.apply(self._last_sample, [previous, output, *older])
        self._remember(output)
        self._last_sample = sample
        return self._predictors[i].apply(sample, self._outputs)

    def _order(self, i: int) -> int:
        # steps before the first have no update
        order = max(1, min(self.options["solver_order"], i + 1 - self.begin))
        return min(order, len(self.timesteps) - i) if self.options["lower_order_final"] else order

    def _add_updates(self, i: int) -> None:
        """Add the predictor from step `i` to `i + 1`, and the corrector for the output at `i + 1`.

        Both integrate the outputs' Taylor expansion at step `i` over h = lambda[i + 1] - lambda[i]; the
        unknown derivatives come from earlier outputs at `ratios` of h; the corrector also has the output
        at ratio 1.
        """
        order = self._order(i)
        h = self._lambdas[i + 1] - self._lambdas[i]
        ratios = np.array(
            [(self._lambdas[i - k] - self._lambdas[i]) / h for k in range(1, order)], np.float32
        )
        if self.options["predict_x0"]:
            sign, ratio, target = -h, self._stds[i + 1] / self._stds[i], self._alphas[i + 1]
        else:
            sign, ratio, target = h, self._alphas[i + 1] / self._alphas[i], self._stds[i + 1]
        phi = np.float32(np.expm1(np.float64(sign)))
        scale = sign if self.options["solver_type"] == "bh1" else phi
        matrix, integrals = _conditions(np.append(ratios, _ONE), sign, phi, scale)
        known = _solved(matrix[:-1, :-1], integrals[:-1]) if order > 2 else np.full(order - 1, _HALF)
        base, weight = -target * phi, -target * scale
        predictor = Update(ratio, base, tuple(weight * known / ratios))
        self._require_finite(weight, predictor.sample, predictor.base, predictor.differences)
        self._predictors.append(predictor)

        if i + 1 == len(self.timesteps) or i in self.options["disable_corrector"]:
            self._correctors.append(None)
            return
        all_known = _solved(matrix, integrals) if order > 1 else np.array([_HALF])
        corrector = Update(ratio, base, (weight * all_known[-1], *(weight * all_known[:-1] / ratios)))
        self._require_finite(corrector.differences)
        self._correctors.append(corrector)


def _conditions(
    ratios: FloatArray, h: np.float32, phi: np.float32, scale: np.float32
) -> tuple[FloatArray, FloatArray]:
    """Return the order conditions matrix @ weights = integrals of the paper, in float32 as in diffusers.

    Row k = 0, 1, ... of the square matrix holds the k-th powers of the ratios. Integral k = 1, 2, ... is
    k! term(k + 1) / scale, where term(1) = phi = exp(h) - 1 and term(k + 1) = term(k) / h - 1 / k!.
    """
    count = len(ratios)
    matrix = np.stack([ratios**power for power in range(count)])
    integrals = np.empty(count, np.float32)
    term = phi / h - _ONE
    factorial = 1
    for k in range(count):
        integrals[k] = term * np.float32(factorial) / scale
        factorial *= k + 2
        term = term / h - np.float32(1 / factorial)
    return matrix, integrals


def _solved(matrix: FloatArray, right: FloatArray) -> FloatArray:
    """Return the solution of the linear system, NaN if there is none."""
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return np.full_like(right, np.nan)
