"""Measures of how far two results are apart."""

from __future__ import annotations

import numpy as np


def relative_l2(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return ``|found - wanted| / |wanted|``, both as vectors of any equal shape, computed in float64.

    NaN where either is not finite; where ``wanted`` is zero, 0 for equal arrays and infinity otherwise.
    """
    wanted = wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance, size = np.linalg.norm(found - wanted), np.linalg.norm(wanted)
    if size == 0:
        return 0.0 if distance == 0 else float("inf")
    with np.errstate(invalid="ignore"):
        return float(distance / size)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of images with values in [0, 1]; 200 for equal ones."""
    error = np.mean(np.square(a.astype(np.float64) - b))
    return float(-10 * np.log10(np.maximum(error, 1e-20)))
