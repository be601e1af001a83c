"""The base of the samplers of consistency distillation: the steps are some of those of the distillation."""

from __future__ import annotations

import numpy as np

from controlnext.errors import InputError
from controlnext.runtime.samplers.alpha_bar import AlphaBarSampler
from controlnext.runtime.samplers.schedule import DoubleArray


class ConsistencySampler(AlphaBarSampler):
    """Base of LCM and TCD: the timesteps are spread over the original_inference_steps of the distillation."""

    def _spaced(self, points: int, top: int | None = None) -> DoubleArray:
        if self.asked.timesteps is not None:
            return super()._spaced(points, top)
        train, original = self.options["num_train_timesteps"], self.options["original_inference_steps"]
        if original > train:
            raise InputError(
                f"the scheduler configuration has {original} original_inference_steps of {train} training"
                " timesteps; export with a smaller `scheduler` original_inference_steps"
            )
        if points > original:
            raise InputError(
                f"num_inference_steps is {points}; sampler '{self.name}' supports 1 to {original} steps with"
                " this scheduler configuration (its original_inference_steps); reduce `num_inference_steps`",
                argument="num_inference_steps",
            )
        distilled = np.arange(1, original + 1) * (train // original) - 1
        chosen = np.floor(np.linspace(0, original, points, endpoint=False)).astype(np.int64)
        return distilled[::-1][chosen].astype(np.float64)
