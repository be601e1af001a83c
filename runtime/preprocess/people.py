"""Find people in an image with a YOLOX detector (arXiv:2107.08430) as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from controlnext.runtime.preprocess.onnx_model import OnnxModel
from controlnext.types import FloatArray

_SIZE = (640, 640)
"""Of a file that takes any size."""
_STRIDES = (8, 16, 32)
_GREY = 114
_PERSON = 0
"""The class of people in COCO."""
_LEAST_SCORE, _MOST_OVERLAP = 0.3, 0.45


class PersonDetector:
    """A YOLOX detector of COCO's classes, without the decoding of boxes in its graph.

    ``path``: its ONNX file; ``argument``: the option that named it.
    """

    def __init__(self, path: Path, argument: str) -> None:
        self._model = OnnxModel(path, argument)
        self._size = self._model.size or _SIZE

    def __call__(self, cv2: Any, pixels: np.ndarray) -> FloatArray:
        """Return boxes (N, 4) float32, left, top, right, bottom in pixels, the surest first.

        ``pixels``: the image (H, W, 3), uint8 RGB.
        """
        padded, ratio = letterbox(cv2, pixels, self._size)
        raw = self._model(padded)[0]
        anchors = sum((self._size[0] // stride) * (self._size[1] // stride) for stride in _STRIDES)
        if raw.ndim != 3 or raw.shape[1] != anchors or raw.shape[2] < 6:
            raise self._model.refused(
                f"its output has shape {raw.shape}; accepted: a YOLOX detector's, (1, {anchors}, 5 + classes)"
            )
        boxes, scores = decode_boxes(raw[0], self._size)
        sure = scores[:, _PERSON] > _LEAST_SCORE
        boxes, scores = boxes[sure] / ratio, scores[sure, _PERSON]
        return boxes[suppress(boxes, scores, _MOST_OVERLAP)]


def letterbox(cv2: Any, pixels: np.ndarray, size: tuple[int, int]) -> tuple[FloatArray, float]:
    """Return the image, resized to fit and padded at the right and the bottom with grey, as float32 of
    ``size``, and the factor."""
    height, width = pixels.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    fitted = (max(1, int(width * ratio)), max(1, int(height * ratio)))
    padded = np.full((*size, 3), _GREY, np.float32)
    padded[: fitted[1], : fitted[0]] = cv2.resize(pixels, fitted, interpolation=cv2.INTER_LINEAR)
    return padded, ratio


def decode_boxes(raw: FloatArray, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Return boxes (anchors, 4), left, top, right, bottom, and scores (anchors, classes) of a detector's
    output (anchors, 5 + classes): a centre in the cell, the logarithm of a size, objectness, classes."""
    cells, steps = [], []
    for stride in _STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=-1))
        steps.append(np.full((rows.size, 1), stride))
    cell, step = np.concatenate(cells), np.concatenate(steps)
    centres, half = (raw[:, :2] + cell) * step, np.exp(raw[:, 2:4]) * step / 2
    boxes = np.concatenate([centres - half, centres + half], axis=-1).astype(np.float32)
    return boxes, raw[:, 4:5] * raw[:, 5:]


def suppress(boxes: FloatArray, scores: FloatArray, most_overlap: float) -> list[int]:
    """Return the numbers of the boxes that remain, the surest first, without those that overlap a surer one
    by more than ``most_overlap``, intersection over union. A box includes the pixels of its edges."""
    left, top, right, bottom = boxes.T
    areas = (right - left + 1) * (bottom - top + 1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size:
        first, order = int(order[0]), order[1:]
        kept.append(first)
        wide = np.minimum(right[first], right[order]) - np.maximum(left[first], left[order]) + 1
        high = np.minimum(bottom[first], bottom[order]) - np.maximum(top[first], top[order]) + 1
        common = np.maximum(wide, 0) * np.maximum(high, 0)
        order = order[common / (areas[first] + areas[order] - common) <= most_overlap]
    return kept
