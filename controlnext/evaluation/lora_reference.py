"""The LoRA of random numbers for PyTorch and for the runtime: merged into the weights, and as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from controlnext.bundle.manifest import LoraRoom, Manifest
from controlnext.evaluation.random_lora import random_inputs
from controlnext.tensor_spec import LORA_DOWN, LORA_UP
from controlnext.types import Feed


def write_random_lora(file: Path, manifest: Manifest, seed: int) -> None:
    """Write the LoRA as peft names it."""
    tensors = {}
    for network, room, inputs in _rooms(manifest, seed):
        for layer in room.layers:
            down, up = inputs[LORA_DOWN][0, :, slice(*layer.down)], inputs[LORA_UP][0, :, slice(*layer.up)]
            if layer.kernel != (1, 1):
                down = down.reshape(len(down), *layer.kernel, -1).transpose(0, 3, 1, 2)
                up = up[:, :, None, None]
            name = f"{network}.{layer.name}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(down)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(up.swapaxes(0, 1))
    save_file(tensors, file)


@torch.no_grad()
def merge_random_lora(modules: Mapping[str, nn.Module], manifest: Manifest, seed: int) -> None:
    """Add the LoRA to the weights of networks."""
    for network, room, inputs in _rooms(manifest, seed):
        for layer in room.layers:
            weight = modules[network].get_parameter(f"{layer.name}.weight")
            down, up = inputs[LORA_DOWN][0, :, slice(*layer.down)], inputs[LORA_UP][0, :, slice(*layer.up)]
            # columns in the order height, width, channel
            delta = (up.T @ down).reshape(len(weight), *layer.kernel, -1).transpose(0, 3, 1, 2)
            added = torch.from_numpy(np.ascontiguousarray(delta)).reshape(weight.shape).to(weight)
            # not in place: weights that a bundle's graph does not read are one number, expanded
            weight.data = weight.data + added


def _rooms(manifest: Manifest, seed: int) -> list[tuple[str, LoraRoom, Feed]]:
    """Return network, room and inputs of each graph with room."""
    graphs = manifest.graphs.values()
    return [(graph.network, graph.lora, random_inputs(graph.lora, seed)) for graph in graphs if graph.lora]
