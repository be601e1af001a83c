"""Images that runs start from, and their masks."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from support.recipe import drawing


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Return a smooth image."""
    return drawing(seed, 16, 16).resize((width, height), Image.Resampling.BICUBIC)


def mask(width: int, height: int, soft: bool = False) -> Image.Image:
    """Return a mask with a white ellipse away from its middle; ``soft``: grey at its edges."""
    made = Image.new("L", (width, height))
    box = (width // 8, height // 4, 5 * width // 8, 3 * height // 4)
    ImageDraw.Draw(made).ellipse(box, fill=255)
    if soft:
        made = made.resize((max(width // 8, 1), max(height // 8, 1))).resize(made.size)
    return made


def outside(mask: Image.Image) -> np.ndarray:
    """Return where a mask is black, (height, width) of bool."""
    return np.asarray(mask) == 0
