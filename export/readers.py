"""Readers of a graph's weights: of its network, and of what is fused into a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from controlnext.families import GraphSpec
from controlnext.image_prompts import numbered_adapters
from controlnext.weights import Checkpoint


def weight_readers(checkpoint: Checkpoint, spec: GraphSpec) -> dict[str, Callable[[], Tensor]]:
    """Return a function that reads each weight of a graph, by the weight's name in the traced module."""
    networks = checkpoint.networks
    parts = {"network": networks[spec.network].tensors}
    if spec.wrapper == "denoiser":
        controls = {name: network.tensors for name, network in networks.items() if network.spec is None}
        numbered = zip(numbered_adapters(len(checkpoint.adapters)), checkpoint.adapters, strict=True)
        adapters = {names.network: adapter.tensors for names, adapter in numbered}
        parts = {"denoiser": networks[spec.network].tensors, **controls, **adapters}
    return {
        f"{prefix}.{name}": partial(tensors.__getitem__, name)
        for prefix, tensors in parts.items()
        for name in tensors
    }
