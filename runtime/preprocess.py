"""Control pictures out of ordinary ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from controlnext.errors import InputError
from controlnext.image_input import ImageReader
from controlnext.optional import extra

_SIGMA = 0.33


def canny(image: Image.Image) -> Image.Image:
    """White edges on black, mode RGB, same size: OpenCV's Canny detector on the grey picture.

    The thresholds are the median grey level less and plus a third of it, as in the published SDXL script.
    """
    cv2 = _import_cv2()
    grey = cv2.cvtColor(np.asarray(ImageReader().read_rgb(image)), cv2.COLOR_RGB2GRAY)
    median = np.median(grey)
    low, high = int((1 - _SIGMA) * median), int(min(255, (1 + _SIGMA) * median))
    return Image.fromarray(cv2.Canny(grey, low, high)).convert("RGB")


PREPROCESSORS: Mapping[str, Callable[[Image.Image], Image.Image]] = MappingProxyType({"canny": canny})


def preprocess(name: str, image: Image.Image, reader: ImageReader | None = None) -> Image.Image:
    """The control picture that the preprocessor ``name`` makes of ``image``, as ``reader`` (a new one) reads
    it."""
    if name not in PREPROCESSORS:
        raise InputError(f"unknown preprocessor {name!r}; accepted: {', '.join(PREPROCESSORS)}")
    return PREPROCESSORS[name]((reader or ImageReader()).read_rgb(image))


def _import_cv2() -> Any:
    with extra("preprocess", "OpenCV"):
        import cv2
    return cv2
