"""Preprocessors: control images out of ordinary ones, each in a file of its own.

    with make_preprocessor("canny") as preprocessor:
        controls = [preprocessor(image) for image in images]

To add one: subclass `Preprocessor` in a file here, and enter it below.
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
    """Return the preprocessor ``name``, a key of :data:`PREPROCESSORS`, with these ``options``; close it.

    Raises :class:`~controlnext.errors.InputError` for an unknown name, or an option that it does not have.
    """
    if name not in PREPROCESSORS:
        raise InputError(f"unknown preprocessor {name!r}; accepted: {', '.join(PREPROCESSORS)}")
    known = inspect.signature(PREPROCESSORS[name]).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(
            f"preprocessor {name!r} has no option {', '.join(unknown)};"
            f" accepted: {', '.join(known) or 'none'}; leave the others out"
        )
    return PREPROCESSORS[name](**options)


def preprocess(name: str, image: Image.Image, reader: ImageReader | None = None) -> Image.Image:
    """Return the control image that the preprocessor ``name`` makes of ``image``, as ``reader`` (a new one)
    reads it; for several images :func:`make_preprocessor` is quicker."""
    with make_preprocessor(name) as preprocessor:
        return preprocessor(image, reader)
