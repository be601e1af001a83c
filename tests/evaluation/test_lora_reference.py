"""The LoRA of random numbers that the reference has in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from controlnext.bundle.manifest import LoraLayer
from controlnext.bundle.reader import read_manifest
from controlnext.evaluation.lora_reference import merge_random_lora
from support.fake_bundle import write_fake_bundle


class _Network:
    """Weights that are one number each, expanded, as those are that no graph of a bundle reads."""

    def __init__(self, layers: list[LoraLayer]) -> None:
        self.weights = {f"{layer.name}.weight": _expanded(layer) for layer in layers}

    def get_parameter(self, name: str) -> nn.Parameter:
        return self.weights[name]


def _expanded(layer: LoraLayer) -> nn.Parameter:
    high, wide = layer.kernel
    inputs = (layer.down[1] - layer.down[0]) // (high * wide)
    shape = (layer.up[1] - layer.up[0], inputs, *((high, wide) if high * wide > 1 else ()))
    return nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)


def test_it_is_added_to_weights_that_are_one_number(tmp_path: Path) -> None:
    manifest = read_manifest(write_fake_bundle(tmp_path / "bundle", lora_rank=2))
    networks: dict[str, Any] = {
        graph.network: _Network(graph.lora.layers) for graph in manifest.graphs.values() if graph.lora
    }
    merge_random_lora(networks, manifest, seed=3)
    for network in networks.values():
        for weight in network.weights.values():
            assert len(np.unique(weight.numpy())) > 1
