"""Images for tests of reading images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

SIZE = (32, 24)


def photo() -> Image.Image:
    """Return a smooth image with all levels, so that no colour model loses much of it."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    return Image.fromarray(np.stack([8 * x, 10 * y, 255 - 4 * (x + y)], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> io.BytesIO:
    """Return the image as a file of this format."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file


def drawn(ink: int, ground: int = 77) -> Image.Image:
    """Return RGBA: a square of ``ink`` in transparent pixels of another colour, one of them half opaque."""
    pixels = np.zeros((24, 32, 4), np.uint8)
    pixels[..., :3] = ground
    pixels[8:16, 8:16] = (ink, ink, ink, 255)
    pixels[0, 0] = (ink, ink, ink, 128)
    return Image.fromarray(pixels)


def flat(ink: int, half: bool = True) -> np.ndarray:
    """Return :func:`drawn` on the ground that contrasts with it, (24, 32, 3)."""
    ground = 255 if ink < 128 else 0
    pixels = np.full((24, 32, 3), ground)
    pixels[8:16, 8:16] = ink
    if half:
        pixels[0, 0] = round(ground + (ink - ground) * 128 / 255)
    return pixels
