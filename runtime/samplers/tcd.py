"""Trajectory consistency sampling (arXiv:2402.19159): each step ends below its target, noise lifts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnext.runtime.samplers.consistency import ConsistencySampler
from controlnext.runtime.samplers.steps import Steps
from controlnext.types import FloatArray

_ONE = np.float32(1)


class TCDSampler(ConsistencySampler):
    """A sampler equal to diffusers' `TCDScheduler`.

    With eta (gamma in the paper) above 0 it draws noise at every step but the last. As in that class, the
    predicted clean sample has no limits.
    """

    name = "tcd"

    def __init__(self, config: Mapping[str, Any], asked: Steps) -> None:
        super().__init__(config, asked)
        self._require_signal()
        if self.options["prediction_type"] == "sample":
            self._require_divisors()
        eta = self.options["eta"]
        reached = np.append(self._visited[1:], 0)
        below = np.floor(np.float32(1 - eta) * reached.astype(np.float32)).astype(np.int64)
        self._next_alpha_bar = self._alpha_bar_table[below]
        kept = self._alpha_bar_table[reached] / self._next_alpha_bar
        kept[-1] = _ONE
        self._share = np.sqrt(kept)
        if eta > 0:
            self._noise_scales = dict(enumerate(np.sqrt(_ONE - kept[:-1])))

    def _step(self, model_output: FloatArray, i: int, sample: FloatArray) -> FloatArray:
        x0 = self._clean_sample(model_output, i, sample)
        noise = self._predicted_noise(model_output, i, sample)
        signal, rest = np.sqrt(self._next_alpha_bar[i]), np.sqrt(_ONE - self._next_alpha_bar[i])
        return self._share[i] * (signal * x0 + rest * noise)
