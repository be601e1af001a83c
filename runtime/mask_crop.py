"""Inpainting of a part of an image alone: the crop around a mask, and the result put back into the image.

With diffusers' arithmetic, for images and masks of 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

_FILTER = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Crop:
    """A part of an image, in pixels: ``right`` and ``lower`` are the first outside."""

    left: int
    upper: int
    right: int
    lower: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.lower - self.upper

    def of(self, image: Image.Image) -> Image.Image:
        """Return this part of an image."""
        return image.crop((self.left, self.upper, self.right, self.lower))


def crop_around(mask: Image.Image, height: int, width: int, padding: int) -> Crop | None:
    """Return the part of an image that holds all that is not black in a mask of mode L; None for a black one.

    It is ``padding`` pixels wider on each side, and then as much wider or higher as it takes to have the
    proportions of ``height`` and ``width``, as far as the mask reaches.
    """
    painted = np.asarray(mask) > 0
    columns, rows = (np.flatnonzero(painted.any(axis)) for axis in (0, 1))
    if not columns.size:
        return None
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, mask.width)
    upper, lower = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, mask.height)
    ratio = width / height
    if (right - left) / (lower - upper) > ratio:
        upper, lower = _widened(upper, lower, (right - left) / ratio, mask.height)
    else:
        left, right = _widened(left, right, (lower - upper) * ratio, mask.width)
    return Crop(left, upper, right, lower)


def _widened(start: int, end: int, wanted: float, limit: int) -> tuple[int, int]:
    """Return a range that is as long as ``wanted`` on both sides alike, moved into 0 to ``limit``."""
    missing = int(wanted - (end - start))
    start -= missing // 2
    end += missing - missing // 2
    beyond = max(end - limit, 0)
    start, end = start - beyond, end - beyond
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def filled(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return an image resized into ``width`` x ``height`` as a whole; its edges fill what is left over."""
    by_width = width / height < image.width / image.height
    inner = (
        (width, image.height * width // image.width)
        if by_width
        else (image.width * height // image.height, height)
    )
    resized = image.resize(inner, _FILTER)
    left, upper = (side // 2 - part // 2 for side, part in zip((width, height), inner, strict=True))
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(resized, (left, upper))
    right, lower = left + inner[0], upper + inner[1]
    if by_width and upper > 0:
        edges = ((0, 0, width, 0), (0, inner[1], width, inner[1]))
        for edge, place in zip(edges, ((0, 0), (0, lower)), strict=True):
            canvas.paste(resized.resize((width, upper), box=edge), place)
    elif not by_width and left > 0:
        edges = ((0, 0, 0, height), (inner[0], 0, inner[0], height))
        for edge, place in zip(edges, ((0, 0), (right, 0)), strict=True):
            canvas.paste(resized.resize((left, height), box=edge), place)
    return canvas


def overlaid(
    image: Image.Image, mask: Image.Image, result: Image.Image, crop: Crop | None = None
) -> Image.Image:
    """Return ``image`` with ``result``, of its ``crop``, where the mask is white; elsewhere its own pixels.

    Without a crop the result covers the image, whose size it is resized to.
    """
    if crop is None:
        under = result if result.size == image.size else result.resize(image.size, _FILTER)
    else:
        under = Image.new("RGB", image.size)
        under.paste(_covering(result, *crop.size), (crop.left, crop.upper))
    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    return Image.alpha_composite(under.convert("RGBA"), kept.convert("RGBA")).convert("RGB")


def _covering(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return an image resized to cover ``width`` x ``height``, without what is left over at its edges."""
    by_height = width / height > image.width / image.height
    outer = (
        (width, image.height * width // image.width)
        if by_height
        else (image.width * height // image.height, height)
    )
    resized = image.resize(outer, _FILTER)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(resized, (width // 2 - outer[0] // 2, height // 2 - outer[1] // 2))
    return canvas
