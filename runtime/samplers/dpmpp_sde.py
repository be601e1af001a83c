"""DPM-Solver++ in single steps (arXiv:2211.01095): what diffusers' documentation calls DPM++ SDE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.dpm_solver import DPMSolver, StepWeights
from controlnext.runtime.samplers.multistep import Update
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray


class DPMPPSDESampler(DPMSolver):
    """A sampler equal to diffusers' `DPMSolverSinglestepScheduler`.

    Its steps come in groups of orders 1, 2, ... solver_order. Each goes on from the sample at the group's
    beginning, with the outputs since then; so only the last of a group counts for the next. With
    algorithm_type sde-dpmsolver++ it draws noise at every step.
    """

    name = "dpmpp_sde"

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        stochastic = self.options["algorithm_type"] == "sde-dpmsolver++"
        self._orders = self._grouped(len(self.timesteps))
        starts = [i + 1 - order for i, order in enumerate(self._orders)]
        self._set_updates(starts, stochastic=stochastic)

    def _grouped(self, steps: int) -> list[int]:
        """Return the order of each step: 1 to solver_order in turn, lower towards the end."""
        highest, to_zero = self.options["solver_order"], self.options["final_sigmas_type"] == "zero"
        orders = [i % highest + 1 for i in range(steps)]
        if to_zero or (self.options["lower_order_final"] and steps % highest == 0):
            orders[-1] = 1
        # a run that begins within a group has no outputs of its earlier steps
        return [min(order, max(1, i + 1 - self.begin)) for i, order in enumerate(orders)]

    def _update(self, i: int, step: StepWeights) -> Update:
        """Return the update on the outputs of the group, oldest first."""
        order, heun = self._orders[i], self.options["solver_type"] == "heun"
        oldest = self._lambdas[i + 1 - order]
        if order == 1:
            return Update(step.sample, step.base)
        newest = (self._lambdas[i] - oldest) / step.h
        if order == 2:
            return Update(step.sample, step.base, ((step.linear if heun else step.half) / newest,))
        if not heun:
            return Update(step.sample, step.base, (np.float32(0), step.linear / newest))
        middle = (self._lambdas[i - 1] - oldest) / step.h
        # divided differences: the first derivative at the oldest, and the second
        square = np.float32(2) * step.square
        apart = newest - middle
        return Update(
            step.sample,
            step.base,
            (
                (step.linear * newest - square) / (apart * middle),
                (square - step.linear * middle) / (apart * newest),
            ),
        )

    def _advance(self, output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        order = self._orders[i]
        if order == 1:
            self._begun = sample
        self._remember(output)
        return self._updates[i].apply(self._begun, self._outputs[order - 1 :: -1])
