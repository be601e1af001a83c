"""Preprocessors, which make control images from ordinary ones; one file each.

    with make_preprocessor("canny") as preprocessor:
        controls = [preprocessor(image) for image in images]

To add one: subclass `Preprocessor` in a file here, and add it to `PREPROCESSORS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from PIL import Image

from controlnext.errors import InputError
from controlnext.image_input import ImageReader
from controlnext.runtime.preprocess.base import MadeOnce, Preprocessor
from controlnext.runtime.preprocess.canny import Canny
from controlnext.runtime.preprocess.maps import Depth, LineArt, SoftEdge
from controlnext.runtime.preprocess.plain import Tile, Unchanged
from controlnext.runtime.preprocess.pose import PosePreprocessor

__all__ = [
    "PREPROCESSORS",
    "MadeOnce",
    "Preprocessor",
    "make_preprocessor",
    "preprocess",
    "shared_preprocessor",
]

PREPROCESSORS: Mapping[str, type[Preprocessor]] = MappingProxyType(
    {
        "canny": Canny,
        "depth": Depth,
        "lineart": LineArt,
        "none": Unchanged,
        "pose": PosePreprocessor,
        "softedge": SoftEdge,
        "tile": Tile,
    }
)


def make_preprocessor(name: str, **options: Any) -> Preprocessor:
    """Return the preprocessor ``name``, a key of :data:`PREPROCESSORS`, with these ``options``.

    Raises :class:`~controlnext.errors.InputError` for an unknown name or option, and for a model that is not
    there. The caller closes the preprocessor.
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


@cache
def shared_preprocessor(name: str) -> Preprocessor:
    """Return the preprocessor ``name`` without options, the same for all callers of this process, who do not
    close it: its models are opened once. The errors are those of :func:`make_preprocessor`."""
    try:
        return make_preprocessor(name)
    except InputError as error:
        if name not in PREPROCESSORS:
            raise
        # its options are not those of these callers
        raise InputError(
            f"preprocessor {name!r} cannot be used here ({error}); give the control image itself, and leave"
            " `preprocess` out",
            argument="preprocess",
        ) from error


def preprocess(name: str, image: Image.Image, reader: ImageReader | None = None) -> Image.Image:
    """Return the control image that the preprocessor ``name``, a shared one, makes of ``image``.

    ``reader`` reads the image; by default it is a new one.
    """
    return shared_preprocessor(name)(image, reader)
