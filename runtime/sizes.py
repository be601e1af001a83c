"""The height and width of a result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from controlnext.errors import InputError
from controlnext.families import Family
from controlnext.runtime.request import CommonRequest, is_integer

MANY = 4
"""Multiple of the pixels that a model was made for up to which it works, if not well."""

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""Height and width in pixels."""


class OwnSize(NamedTuple):
    """The size of an image that a request has, and what messages call that image."""

    size: Size
    name: str = "control image"


def choose_size(family: Family, config: Mapping[str, Any], request: CommonRequest, own: OwnSize) -> Size:
    """Return the requested size, else that of the latents, else that of the request's own image.

    The image's own size is rounded down to what the model supports, as diffusers does. ``config``: the
    denoiser's. Raises :class:`InputError` for a size that the model does not support.
    """
    sizes = []
    for axis, name in enumerate(("height", "width")):
        asked = getattr(request, name)
        if asked is not None:
            size, given = asked, f"{name} is {asked!r}"
        elif request.latents is not None:
            size = family.vae_factor * request.latents.shape[axis - 2]
            given = f"the {name} of the latents is {size}"
        else:
            given = f"the {name} of the {own.name} is {own.size[axis]}"
            size = own.size[axis] // family.size_multiple * family.size_multiple
        sizes.append(_checked(family, config, name, size, given))
    return sizes[0], sizes[1]


def enlarged_size(family: Family, config: Mapping[str, Any], size: Size, factor: float) -> Size:
    """Return ``factor`` times a size, rounded down to what the model supports.

    Raises :class:`InputError` for one that is too large, or not larger.
    """
    multiple, largest = family.size_multiple, family.largest_size(config)
    height, width = (int(side * factor) // multiple * multiple for side in size)
    if (height, width) == size or max(height, width) > largest:
        raise InputError(
            f"upscale is {factor:g}, which makes {width} x {height} of {size[1]} x {size[0]} pixels; give one"
            f" that makes a larger multiple of {multiple}, up to {largest:g}",
            argument="upscale",
        )
    return height, width


def _checked(family: Family, config: Mapping[str, Any], name: str, size: object, given: str) -> int:
    if not is_integer(size) or size < family.size_multiple or size % family.size_multiple:  # type: ignore[operator]
        raise InputError(
            f"{given}; height and width must be multiples of {family.size_multiple}"
            f"{family.nearest_sizes(size)}",
            argument=name,
        )
    if size > (largest := family.largest_size(config)):  # type: ignore[operator]
        raise InputError(f"{name} is {size}; this model supports at most {largest:g}", argument=name)
    return int(size)  # type: ignore[call-overload]


def warn_if_large(family: Family, config: Mapping[str, Any], size: Size) -> None:
    """Log a warning for a size far above the one that the model was made for."""
    made_for = family.made_for(config)
    if made_for is not None and size[0] * size[1] > MANY * made_for[0] * made_for[1]:
        logger.warning(
            "%d x %d pixels are %.0f times as many as this model was made for (%d x %d): expect repeated"
            " content, and much memory and time; give a smaller height and width",
            *size[::-1],
            size[0] * size[1] / (made_for[0] * made_for[1]),
            *made_for[::-1],
        )
