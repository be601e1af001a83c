"""Fit the poses of a clip to the person in a reference image, as ControlNeXt's SVD is given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from controlnext.runtime.preprocess.keypoints import SHOWN, Pose
from controlnext.types import FloatArray

_FITTED = (0, 1, 2, 5, *range(8, 18))
"""The body's keypoints that are fitted: not elbows and wrists, which move the most."""

Size = tuple[int, int]


def fit_to_reference(
    poses: Sequence[Pose], size: Size, reference: Pose, reference_size: Size
) -> tuple[FloatArray, FloatArray] | None:
    """Return factors and shifts, each of x and y, that move the poses of a clip onto the first person of the
    ``reference``; sizes are height and width of their images.

    Heights are fitted by least squares over the frames that have one person; widths have the same factor in
    pixels. None if there is no person to fit, or to fit to.
    """
    bodies = [pose.points[0] for pose in poses if len(pose) == 1]
    shown = [number for number in _FITTED if len(reference) and reference.scores[0, number] > SHOWN]
    if len(shown) < 2 or not bodies:
        return None
    found = np.array(bodies, np.float64)[:, shown]
    wanted = np.broadcast_to(reference.points[0, shown].astype(np.float64), found.shape)
    spread = found[..., 1] - found[..., 1].mean()
    if not spread.any():
        return None
    tall = (spread * wanted[..., 1]).sum() / (spread**2).sum()
    (height, width), (reference_height, reference_width) = size, reference_size
    wide = tall * width * reference_height / (height * reference_width)
    factors = np.array([wide, tall])
    return factors, (wanted - factors * found).mean(axis=(0, 1))


def moved(pose: Pose, factors: FloatArray, shifts: FloatArray) -> Pose:
    """Return the pose with its keypoints moved."""
    return replace(pose, points=(pose.points * factors + shifts).astype(np.float32))
