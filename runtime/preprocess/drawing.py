"""Draw poses as those that ControlNeXt's SVD was trained with: bodies, hands and faces on black."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from controlnext.runtime.preprocess.keypoints import FACE, HANDS, SHOWN, Pose
from controlnext.types import FloatArray

_CANVAS = 2160
"""The shorter side of what is drawn and then made smaller, in pixels; all widths are of this size."""
_STICK, _JOINT, _FACE_DOT, _HAND_LINE = 4, 4, 3, 2
_FADED = (np.arange(256) * 0.6).astype(np.uint8)
"""The limbs' levels by what they were; joints, hands and faces are drawn over them in full."""

_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)),  # shoulders and arms
    *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),  # hips and legs
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),  # neck, eyes and ears
)
_RING = 360
_BODY_COLOURS: tuple[tuple[int, ...], ...] = tuple(
    # from blue by cyan, green, yellow and red to violet: 18 hues, 20 degrees apart
    tuple(round(255 * level) for level in colorsys.hsv_to_rgb((240 - 20 * number) % _RING / _RING, 1.0, 1.0))
    for number in range(18)
)
_FINGERS = 5
_HAND_EDGES = tuple(
    edge for finger in range(_FINGERS) for edge in pairwise((0, *range(4 * finger + 1, 4 * finger + 5)))
)
"""Each finger's four bones, from the wrist on."""


def draw_pose(cv2: Any, pose: Pose, height: int, width: int) -> np.ndarray:
    """Return the image (height, width, 3), uint8 RGB, of a pose; of nobody it is black.

    Levels are lower where scores are.
    """
    scale = _CANVAS / min(height, width)
    canvas = np.zeros((int(height * scale), int(width * scale), 3), np.uint8)
    # drawing truncates to pixels
    people = [person * np.array(canvas.shape[1::-1], np.float32) for person in pose.points]
    for number, limb in enumerate(_LIMBS):
        for points, scores in zip(people, pose.scores, strict=True):
            _draw_limb(cv2, canvas, points[[*limb]], scores[[*limb]], _BODY_COLOURS[number])
    canvas = cv2.LUT(canvas, _FADED)
    for number, colour in enumerate(_BODY_COLOURS):
        for points, scores in zip(people, pose.scores, strict=True):
            if scores[number] > SHOWN:
                _dot(cv2, canvas, points[number], _JOINT, _dimmed(colour, scores[number]))
    for points, scores in zip(people, pose.scores, strict=True):
        for hand in HANDS:
            _draw_hand(cv2, canvas, points[hand], scores[hand])
        for point, score in zip(points[FACE], scores[FACE], strict=True):
            if _inside(point):
                _dot(cv2, canvas, point, _FACE_DOT, _dimmed((255, 255, 255), score))
    return np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR))


def _draw_limb(
    cv2: Any, canvas: np.ndarray, ends: FloatArray, scores: FloatArray, colour: Sequence[float]
) -> None:
    """Draw an ellipse between two joints, if both are sure."""
    if scores.min() < SHOWN:
        return
    (x, y), (dx, dy) = ends.mean(axis=0), ends[0] - ends[1]
    axes = int(math.hypot(dx, dy) / 2), _STICK
    outline = cv2.ellipse2Poly((int(x), int(y)), axes, int(math.degrees(math.atan2(dy, dx))), 0, _RING, 1)
    cv2.fillConvexPoly(canvas, outline, _dimmed(colour, scores.prod()))


def _draw_hand(cv2: Any, canvas: np.ndarray, points: FloatArray, scores: FloatArray) -> None:
    for number, (start, end) in enumerate(_HAND_EDGES):
        if _inside(points[start]) and _inside(points[end]):
            red, green, blue = colorsys.hsv_to_rgb(number / len(_HAND_EDGES), 1.0, 1.0)
            level = int(scores[start] * scores[end] * 255)
            # the order of the published images, whose fingers go from blue to red
            colour = (blue * level, green * level, red * level)
            cv2.line(canvas, _pixel(points[start]), _pixel(points[end]), colour, thickness=_HAND_LINE)
    for point, score in zip(points, scores, strict=True):
        if _inside(point):
            _dot(cv2, canvas, point, _JOINT, _dimmed((255, 0, 0), score))


def _dot(cv2: Any, canvas: np.ndarray, point: FloatArray, radius: int, colour: Sequence[float]) -> None:
    cv2.circle(canvas, _pixel(point), radius, colour, thickness=-1)


def _dimmed(colour: Sequence[float], score: float) -> tuple[int, ...]:
    return tuple(int(level * score) for level in colour)


def _pixel(point: FloatArray) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _inside(point: FloatArray) -> bool:
    """Return whether a keypoint of a hand or a face is right of and below the first pixel; others are
    missing."""
    return min(_pixel(point)) > 0
