"""Find a person's keypoints with an estimator of whole bodies (RTMPose, DWPose) as an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controlnext.runtime.preprocess.onnx_model import OnnxModel
from controlnext.types import FloatArray

_SIZE = (384, 288)
"""Height and width, of a file that takes any size."""
_WHOLE_BODY = 133
"""COCO-WholeBody's number of keypoints: 17 of the body, 6 of the feet, 68 of the face, 21 of each hand."""
_PADDING = 1.25
"""Factor of a box's sides, so that all of the person is in the crop."""
_MEAN = np.array((123.675, 116.28, 103.53), np.float32)
_DEVIATION = np.array((58.395, 57.12, 57.375), np.float32)
SHOWN = 0.3
"""A keypoint of the body whose score is not larger is not shown."""

FACE = slice(24, 92)
HANDS = (slice(92, 113), slice(113, 134))
"""Keypoints of a :class:`Pose`; before the face are 18 of the body and 6 of the feet."""

_SHOULDERS = (5, 6)
# OpenPose's order of the body's keypoints, by COCO's numbers; the neck, which COCO does not have, is the last
_NECK = 17
_BODY_ORDER = (0, _NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)


@dataclass(frozen=True)
class Pose:
    """The keypoints of the people in an image: ``points`` (people, 134, 2), x and y as fractions of width and
    height, and ``scores`` (people, 134); float32.

    The first 18 are the body's in OpenPose's order, with the neck.
    """

    points: FloatArray
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.points)


class KeypointEstimator:
    """An estimator of 133 keypoints whose outputs are their distributions over x and over y (SimCC,
    arXiv:2107.03332).

    ``path``: its ONNX file; ``argument``: the option that named it.
    """

    def __init__(self, path: Path, argument: str) -> None:
        self._model = OnnxModel(path, argument)
        self._size = self._model.size or _SIZE

    def __call__(self, cv2: Any, pixels: np.ndarray, boxes: FloatArray) -> Pose:
        """Return the pose of the person in each of the ``boxes`` (N, 4) of an image (H, W, 3), uint8 RGB."""
        found = [self._person(cv2, pixels, box) for box in boxes]
        points = np.array([points for points, _ in found], np.float32).reshape(-1, _WHOLE_BODY, 2)
        scores = np.array([scores for _, scores in found], np.float32).reshape(-1, _WHOLE_BODY)
        points, scores = with_neck(points, scores)
        size: FloatArray = np.array(pixels.shape[1::-1], np.float32)
        return Pose(points / size, scores)

    def _person(self, cv2: Any, pixels: np.ndarray, box: FloatArray) -> tuple[FloatArray, FloatArray]:
        height, width = self._size
        matrix = crop_matrix(box, self._size)
        crop = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR)
        outputs = self._model((crop.astype(np.float32) - _MEAN) / _DEVIATION)
        shapes = [output.shape for output in outputs]
        if len(shapes) != 2 or any(len(shape) != 3 or shape[1] != _WHOLE_BODY for shape in shapes):
            raise self._model.refused(
                f"its outputs have shapes {', '.join(map(str, shapes))}; accepted: two, x and y of"
                f" {_WHOLE_BODY} keypoints, (1, {_WHOLE_BODY}, bins)"
            )
        points, scores = decode_simcc(outputs[0][0], outputs[1][0], self._size)
        return (points - matrix[:, 2]) / matrix[0, 0], scores


def crop_matrix(box: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Return the matrix (2, 3) float64 from an image to a crop of ``size``, height and width, whose centre is
    the box's and which holds the padded box."""
    height, width = size
    left, top, right, bottom = np.asarray(box, np.float64)
    wide, high = (right - left) * _PADDING, (bottom - top) * _PADDING
    scale = width / max(wide, high * width / height)
    shift = np.array([width - scale * (left + right), height - scale * (top + bottom)]) / 2
    return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def decode_simcc(x: FloatArray, y: FloatArray, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Return the likeliest places (keypoints, 2) in a crop of ``size``, height and width, and scores: the
    smaller of both maxima.

    ``x``, ``y``: (keypoints, bins), with the same number of bins for each pixel. A keypoint without a
    positive score is left of and above the crop.
    """
    places = np.stack([x.argmax(axis=-1), y.argmax(axis=-1)], axis=-1).astype(np.float32)
    scores = np.minimum(x.max(axis=-1), y.max(axis=-1))
    places[scores <= 0] = -1
    bins = np.array([x.shape[-1] / size[1], y.shape[-1] / size[0]], np.float32)
    return places / bins, scores


def with_neck(points: FloatArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return COCO-WholeBody's keypoints (people, 133, 2) and scores (people, 133) with the body's in
    OpenPose's order, and the neck between the shoulders, whose score is 1 where both are sure and else 0."""
    neck = points[:, _SHOULDERS].mean(axis=1, keepdims=True)
    sure = (scores[:, _SHOULDERS] > SHOWN).all(axis=1, keepdims=True).astype(np.float32)
    points = np.concatenate([points[:, :_NECK], neck, points[:, _NECK:]], axis=1)
    scores = np.concatenate([scores[:, :_NECK], sure, scores[:, _NECK:]], axis=1)
    order = [*_BODY_ORDER, *range(len(_BODY_ORDER), _WHOLE_BODY + 1)]
    return points[:, order], scores[:, order]
