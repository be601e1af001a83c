"""Preprocessors, which make control images from ordinary ones; one file each.

    with make_preprocessor("canny") as preprocessor:
        controls = [preprocessor(image) for image in images]

To add one: subclass `Preprocessor` in a file here, and add it to `PREPROCESSORS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from PIL import Image

from controlnext.errors import InputError
from controlnext.image_input import ImageReader
from controlnext.runtime.preprocess.base import Preprocessor
from controlnext.runtime.preprocess.canny import Canny

__all__ = ["PREPROCESSORS", "Preprocessor", "make_preprocessor", "preprocess"]

PREPROCESSORS: Mapping[str, type[Preprocessor]] = MappingProxyType({"canny": Canny})


def make_preprocessor(name: str, **options: Any) -> Preprocessor:
    """Return the preprocessor ``name``, a key of :data:`PREPROCESSORS`, with these ``options``.

    Raises :class:`~controlnext.errors.InputError` for an unknown name or option. The
    caller closes the preprocessor.
    """
    if name not in PREPROCESSORS:
        raise InputError(f"unknown preprocessor {name!r}; accepted: {', '.join(PREPROCESSORS)}")
    accepted = inspect.signature(PREPROCESSORS[name]).parameters
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise InputError(
            f"preprocessor {name!r} has no option {', '.join(unknown)};"
            f" accepted: {', '.join(accepted) or 'none'}; remove the others"
        )
    return PREPROCESSORS[name](**options)


def preprocess(name: str, image: Image.Image, reader: ImageReader | None = None) -> Image.Image:
    """Return the control image that the preprocessor ``name`` makes of ``image``.

    ``reader`` reads the image; by default it is a new one. For several images :func:`make_preprocessor` is
    faster.
    """
    with make_preprocessor(name) as preprocessor:
        return preprocessor(image, reader)
