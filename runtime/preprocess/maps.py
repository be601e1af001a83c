"""Preprocessors whose model makes a map of an image: depth, soft edges, lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from controlnext.optional import extra
from controlnext.runtime.preprocess.base import Preprocessor
from controlnext.runtime.preprocess.model_files import ModelFile, find_model
from controlnext.runtime.preprocess.onnx_model import OnnxModel
from controlnext.types import FloatArray

Rgb = tuple[float, float, float]

_FLAT = 1e-5
"""A range of this part of a map's levels is rounding alone."""


def scale_to_range(maps: Sequence[FloatArray]) -> FloatArray:
    """Return the first map from its least value, 0, to its largest, 1; a flat one is 0."""
    least, largest = float(maps[0].min()), float(maps[0].max())
    if largest - least <= _FLAT * max(abs(least), abs(largest)):
        return np.zeros_like(maps[0])
    return (maps[0] - least) / (largest - least)


def mean_of_logits(maps: Sequence[FloatArray]) -> FloatArray:
    """Return the sigmoid of the mean of all maps, such as HED's side outputs."""
    return 1.0 / (1.0 + np.exp(-np.mean(maps, axis=0)))


def invert(maps: Sequence[FloatArray]) -> FloatArray:
    """Return the first map, dark lines on white, as white lines on black."""
    return 1.0 - np.clip(maps[0], 0.0, 1.0)


@dataclass(frozen=True)
class MapSpec:
    """A model's input and outputs.

    ``mean``, ``deviation``: of RGB levels from 0 to 255, subtracted and divided by. ``side``: the size that
    one side of an image gets, the one that is changed less; None: images keep their size. Sizes are rounded
    to ``multiple``. ``finish``: makes numbers from 0 to 1 of the model's outputs (height, width), all of the
    image's size. ``default``: the file that is used unless one is given.
    """

    finish: Callable[[Sequence[FloatArray]], FloatArray]
    mean: Rgb = (0.0, 0.0, 0.0)
    deviation: Rgb = (1.0, 1.0, 1.0)
    side: int | None = None
    multiple: int = 8
    default: ModelFile | None = None


class MapPreprocessor(Preprocessor):
    """A grey image of the image's size, from a map that the model ``weights`` makes: an ONNX file, by its
    path or at the hub."""

    models = ("weights",)
    spec: ClassVar[MapSpec]

    def __init__(self, weights: str | Path | None = None) -> None:
        self._model: OnnxModel | None = OnnxModel(
            find_model("weights", weights, self.spec.default), "weights"
        )

    def process(self, image: Image.Image) -> Image.Image:
        """Return the map of ``image``; both in mode RGB."""
        cv2, model = _import_cv2(), self._model
        assert model is not None, "the preprocessor is closed"
        pixels = np.asarray(image, np.float32)
        height, width = model.size or self._size(image.height, image.width)
        resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        mean, deviation = (np.array(rgb, np.float32) for rgb in (self.spec.mean, self.spec.deviation))
        outputs = model((resized - mean) / deviation)
        maps = [cv2.resize(_plane(model, one), image.size, interpolation=cv2.INTER_LINEAR) for one in outputs]
        levels = np.rint(255 * self.spec.finish(maps)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")

    def _size(self, height: int, width: int) -> tuple[int, int]:
        spec = self.spec
        scale = 1.0
        if spec.side is not None:
            scale = min(spec.side / height, spec.side / width, key=lambda factor: abs(1 - factor))
        sides = (max(1, round(scale * side / spec.multiple)) * spec.multiple for side in (height, width))
        high, wide = sides
        return high, wide

    def close(self) -> None:
        """Release the model."""
        self._model = None


class Depth(MapPreprocessor):
    """Depth by a model such as Depth Anything or MiDaS: near is white, far is black."""

    spec = MapSpec(
        scale_to_range,
        mean=(123.675, 116.28, 103.53),
        deviation=(58.395, 57.12, 57.375),
        side=518,
        multiple=14,
        default=ModelFile("onnx-community/depth-anything-v2-small", "onnx/model.onnx"),
    )


class SoftEdge(MapPreprocessor):
    """Soft white edges on black, by a model such as HED, of levels from 0 to 255 to logits."""

    spec = MapSpec(mean_of_logits)


class LineArt(MapPreprocessor):
    """White lines on black, by a model that draws dark lines on white, from and to levels from 0 to 1."""

    spec = MapSpec(invert, deviation=(255.0, 255.0, 255.0))


def _plane(model: OnnxModel, output: FloatArray) -> FloatArray:
    """Return an output as (height, width)."""
    if output.ndim < 2 or not output.size or output.size != output.shape[-1] * output.shape[-2]:
        raise model.refused(
            f"an output has shape {output.shape}; accepted: (1, height, width), for one image"
        )
    return output.reshape(output.shape[-2:])


def _import_cv2() -> Any:
    with extra("preprocess", "OpenCV"):
        import cv2
    return cv2
