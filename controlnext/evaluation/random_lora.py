"""A LoRA of random numbers for all layers that a graph has room for, as the graph's inputs."""

from __future__ import annotations

import numpy as np

from controlnext.bundle.manifest import LoraLayer, LoraRoom
from controlnext.tensor_spec import LORA_DOWN, LORA_UP
from controlnext.types import Feed, FloatArray

NAME = "random"
"""The name by which runs choose it."""
_SHARE = 0.3
"""Size of what a branch adds, in units of what enters the layer."""


def random_inputs(room: LoraRoom, seed: int) -> Feed:
    """Return the inputs of a graph for the LoRA, at the largest rank that there is room for."""
    generator = np.random.default_rng(seed)
    downs, ups = (np.empty((1, room.rank, columns), np.float32) for columns in room.columns)
    for layer in room.layers:
        downs[0, :, slice(*layer.down)], ups[0, :, slice(*layer.up)] = _pair(layer, room.rank, generator)
    return {LORA_DOWN: downs, LORA_UP: ups}


def _pair(layer: LoraLayer, rank: int, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return down (rank, columns) and up (rank, columns) of a layer."""
    width, height = layer.down[1] - layer.down[0], layer.up[1] - layer.up[0]
    down = generator.standard_normal((rank, width), np.float32) / np.float32(np.sqrt(width))
    up = generator.standard_normal((rank, height), np.float32) * np.float32(_SHARE / np.sqrt(rank))
    return down, up
