"""Histograms of a tensor's values, to find the int8 grid that suits it."""

from __future__ import annotations

import numpy as np

from controlnext.export.passes.quantize import LEVELS

_PER_OCTAVE = 32
_OCTAVES = (-40, 40)


class HistogramObserver:
    """A histogram of a tensor's magnitudes, with classes 2 % wide.

    Rounding errors count relative to the energy of their step: latents may grow along a sampling run, and a
    grid for the largest step alone would be too coarse for the others.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_PER_OCTAVE * (_OCTAVES[1] - _OCTAVES[0]))
        self.largest = 0.0
        self.steps = 0

    def add(self, sample: np.ndarray, largest: float) -> None:
        """Add a step's ``sample`` to the counts; ``largest`` is the largest magnitude of the whole tensor."""
        self.steps += 1
        magnitudes = np.abs(sample[sample != 0])
        if not magnitudes.size:
            return
        octaves = np.log2(magnitudes, dtype=np.float32) - _OCTAVES[0]
        classes = (octaves * _PER_OCTAVE).astype(np.int64).clip(0, len(self.counts) - 1)
        energy = np.sum(np.square(magnitudes, dtype=np.float64))
        self.counts += np.bincount(classes, minlength=len(self.counts)) / energy
        self.largest = max(self.largest, float(largest))

    def mse_optimal_scale(self) -> tuple[float, float]:
        """Return the scale of the symmetric grid with the least squared error, and that mean relative error.

        A finer grid rounds less and clips more: within the grid the error of a number is that of rounding,
        ``step**2 / 12``, below half a step its own square, beyond the last level the clipped part.
        """
        if not self.largest:
            return 1.0, 0.0
        middles = 2.0 ** ((np.arange(len(self.counts)) + 0.5) / _PER_OCTAVE + _OCTAVES[0])
        seen = self.counts > 0
        counts, middles = self.counts[seen], middles[seen]
        steps = self.largest / LEVELS * np.geomspace(1, 1 / 64, 300)[:, None]
        cut = np.maximum(middles - LEVELS * steps, 0)
        rounding = np.where(middles < steps / 2, middles, steps / np.sqrt(12))
        errors = (np.where(cut > steps / 2, cut, rounding) ** 2 * counts).sum(1)
        best = int(errors.argmin())
        return float(steps[best, 0]), float(errors[best]) / self.steps
