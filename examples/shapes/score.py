"""Scores of images (H, W, 3), floats in [0, 1], against the drawing of their prompt."""

import numpy as np
from draw import PALETTE, Drawing, mask

_NAMES = tuple(PALETTE)
_COLOURS = np.array([PALETTE[name] for name in _NAMES], dtype=np.float64) / 255


def overlap(image: np.ndarray, drawing: Drawing) -> float:
    """Return the intersection over union of the image's shape with the drawing's.

    A pixel belongs to the image's shape if it is nearer to the drawing's colour than to its background.
    """
    to_object = _distance(image, drawing.colour)
    to_background = _distance(image, drawing.background)
    drawn, asked = to_object < to_background, mask(drawing)
    return float((drawn & asked).sum() / max((drawn | asked).sum(), 1))


def colours_right(image: np.ndarray, drawing: Drawing) -> bool:
    """Tell whether the median colours inside and outside the drawing's shape are nearest to its two
    colours."""
    asked = mask(drawing)
    inside, outside = _nearest_name(image[asked]), _nearest_name(image[~asked])
    return (inside, outside) == (drawing.colour, drawing.background)


def _distance(image: np.ndarray, colour: str) -> np.ndarray:
    return np.linalg.norm(image - _COLOURS[_NAMES.index(colour)], axis=-1)


def _nearest_name(pixels: np.ndarray) -> str:
    distances = np.linalg.norm(_COLOURS - np.median(pixels, axis=0), axis=1)
    return _NAMES[int(distances.argmin())]
