"""Preprocessors that detect nothing: the image as it is, and enlarged."""

from __future__ import annotations

from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime.preprocess.base import Preprocessor

_MULTIPLE = 16
"""Sizes that every family's images can have are multiples of this."""


class Unchanged(Preprocessor):
    """The image itself: it is a control image already."""

    def process(self, image: Image.Image) -> Image.Image:
        """Return ``image``."""
        return image


class Tile(Preprocessor):
    """The image enlarged ``factor`` times (from 1 to 16), bicubically, for super-resolution.

    Height and width are rounded to multiples of 16, which every family takes.
    """

    def __init__(self, factor: float = 4.0) -> None:
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 1 <= factor <= 16:
            raise InputError(f"factor is {factor!r}; it must be a number from 1 to 16", argument="factor")
        self._factor = factor

    def process(self, image: Image.Image) -> Image.Image:
        """Return ``image`` enlarged."""
        width, height = (max(1, round(side * self._factor / _MULTIPLE)) * _MULTIPLE for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)
