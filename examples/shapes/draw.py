"""Drawn shapes, on which the small model is trained and tested.

A drawing is one flat shape on a flat background. From the same description come the prompt that names kind
and colours, the image, the outline (the control image) and the mask of the shape. Everything follows from
an integer seed. Some (colour, kind, background) triples are held out: no training drawing ever uses them.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
OVERSAMPLING = 4
OUTLINE_WIDTH = 2
MARGIN = 4
KINDS = ("circle", "square", "triangle", "star", "cross")
PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 50),
    "magenta": (220, 60, 200),
    "cyan": (70, 210, 220),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
HELD_OUT_TRIPLES = 64
_SPLIT_SEED, _TRAINING_SEED, _TEST_SEED = 0, 1, 2

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Drawing:
    """A shape inside a circle of `radius`, squeezed by `aspect` and then rotated by `angle` (radians)."""

    kind: str
    colour: str
    background: str
    x: float
    y: float
    radius: float
    angle: float
    aspect: float


def prompt(drawing: Drawing) -> str:
    """Return the prompt of a drawing, without its position, size and rotation."""
    return f"a {drawing.colour} {drawing.kind} on a {drawing.background} background"


def image(drawing: Drawing) -> np.ndarray:
    """Draw the image, (SIZE, SIZE, 3) uint8."""
    cover = coverage(drawing)[..., None] / 255.0
    colours = np.array([PALETTE[drawing.colour], PALETTE[drawing.background]], dtype=np.float64)
    return (cover * colours[0] + (1 - cover) * colours[1]).round().astype(np.uint8)


def outline(drawing: Drawing) -> np.ndarray:
    """Draw the control image, a white line along the shape's edge on black, (SIZE, SIZE, 3) uint8."""
    return np.repeat(outline_map(drawing)[..., None], 3, axis=2)


def mask(drawing: Drawing) -> np.ndarray:
    """Return the mask of the shape's pixels, (SIZE, SIZE) bool."""
    return coverage(drawing) > 127


def coverage(drawing: Drawing) -> np.ndarray:
    """Return the share of each pixel that the shape covers, (SIZE, SIZE) uint8 from 0 to 255."""
    canvas, corners = _canvas(drawing)
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLING))


def outline_map(drawing: Drawing) -> np.ndarray:
    """Draw the outline as one channel, (SIZE, SIZE) uint8."""
    canvas, corners = _canvas(drawing)
    closed = [*corners, corners[0], corners[1]]
    ImageDraw.Draw(canvas).line(closed, fill=255, width=OUTLINE_WIDTH * OVERSAMPLING, joint="curve")
    return np.asarray(canvas.reduce(OVERSAMPLING))


def training_drawing(seed: int) -> Drawing:
    """Return the training drawing of a seed, never of a held-out triple."""
    rng = np.random.default_rng([_TRAINING_SEED, seed])
    return _random_drawing(TRAINING[rng.integers(len(TRAINING))], rng)


def held_out(count: int = HELD_OUT_TRIPLES) -> list[Drawing]:
    """Return test drawings of the held-out triples in turn, each at its own position."""
    return [
        _random_drawing(HELD_OUT[index % len(HELD_OUT)], np.random.default_rng([_TEST_SEED, index]))
        for index in range(count)
    ]


def _split() -> tuple[list[Triple], list[Triple]]:
    triples = [(c, k, b) for c, k, b in product(PALETTE, KINDS, PALETTE) if c != b]
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(triples))
    shuffled = [triples[index] for index in order]
    return shuffled[HELD_OUT_TRIPLES:], shuffled[:HELD_OUT_TRIPLES]


TRAINING, HELD_OUT = _split()


def _random_drawing(triple: Triple, rng: np.random.Generator) -> Drawing:
    colour, kind, background = triple
    radius = rng.uniform(20, 42)
    x, y = rng.uniform(radius + MARGIN, SIZE - radius - MARGIN, size=2)
    angle, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.65, 1)
    return Drawing(kind, colour, background, float(x), float(y), float(radius), float(angle), float(aspect))


def _unit_corners(kind: str) -> np.ndarray:
    """Return the corners (corners, 2) of an upright shape inside the unit circle."""
    if kind == "cross":
        arm, end = 0.35, 0.93
        quarter = np.array([[arm, arm], [arm, end], [-arm, end]])
        turn = np.array([[0.0, -1.0], [1.0, 0.0]])
        return np.concatenate([quarter @ np.linalg.matrix_power(turn.T, step) for step in range(4)])
    count = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[kind]
    angles = np.arange(count) * (2 * np.pi / count)
    radii = np.where(np.arange(count) % 2, 0.45, 1.0) if kind == "star" else np.ones(count)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _canvas(drawing: Drawing) -> tuple[Image.Image, list[tuple[float, float]]]:
    """Return an empty oversampled canvas and the shape's corners on it."""
    sin, cos = np.sin(drawing.angle), np.cos(drawing.angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    corners = _unit_corners(drawing.kind) * [drawing.aspect, 1] @ turn.T
    corners = (corners * drawing.radius + [drawing.x, drawing.y]) * OVERSAMPLING
    canvas = Image.new("L", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING))
    return canvas, [(float(x), float(y)) for x, y in corners]
