"""The Canny edge detector."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from controlnext.optional import extra
from controlnext.runtime.preprocess.base import Preprocessor

_SIGMA = 0.33


class Canny(Preprocessor):
    """White edges on black in the same size: OpenCV's Canny detector on the grey image.

    The thresholds are the median grey level minus and plus a third of it, as in the published SDXL script.
    """

    def process(self, image: Image.Image) -> Image.Image:
        """Return the edges of ``image``; both in mode RGB."""
        cv2 = _import_cv2()
        grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
        median = np.median(grey)
        low, high = int((1 - _SIGMA) * median), int(min(255, (1 + _SIGMA) * median))
        return Image.fromarray(cv2.Canny(grey, low, high)).convert("RGB")


def _import_cv2() -> Any:
    with extra("preprocess", "OpenCV"):
        import cv2
    return cv2
