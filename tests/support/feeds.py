"""Inputs for engines."""

from __future__ import annotations

import numpy as np

from controlnext.engines import Engine
from controlnext.families import PER_STEP_INPUTS
from controlnext.types import Feed
from support.recipe import rand


def make_feed(engine: Engine, seed: int = 0, height: int = 8, sequence: int = 7) -> dict[str, np.ndarray]:
    """Return random inputs of ``engine``: a batch of two, ``height`` by 6, with two frames for clips."""
    sizes = {
        "batch": 2,
        "control_batch": 1,
        "frames": 2,
        "height": height,
        "width": 6,
        "sequence": sequence,
    }
    return {spec.name: rand(seed + i, *spec.shape_at(sizes)) for i, spec in enumerate(engine.inputs)}


def split(feed: Feed) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Split a denoiser's inputs into those that are bound for a run and those of each step."""
    per_step = {name: feed[name] for name in PER_STEP_INPUTS}
    return {name: array for name, array in feed.items() if name not in PER_STEP_INPUTS}, per_step
