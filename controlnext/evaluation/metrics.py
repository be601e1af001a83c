"""Metrics of the difference of two results."""

from __future__ import annotations

import numpy as np


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """Return ``|found - expected| / |expected|``, both as vectors of any equal shape, computed in float64.

    NaN if either is not finite. If ``expected`` is all zeros: 0 for equal arrays, else infinity.
    """
    expected = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    if size == 0:
        return 0.0 if distance == 0 else float("inf")
    with np.errstate(invalid="ignore"):
        return float(distance / size)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of images with values in [0, 1]; 200 for equal ones."""
    error = np.mean(np.square(a.astype(np.float64) - b))
    return float(-10 * np.log10(np.maximum(error, 1e-20)))
