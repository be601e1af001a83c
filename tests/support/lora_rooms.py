"""Room for LoRAs in tiny networks, without exporting them."""

from __future__ import annotations

from typing import Any

from torch import nn

from controlnext.bundle.manifest import SCHEMA, Graph, LoraLayer, LoraRoom, Manifest
from controlnext.errors import CheckpointError
from controlnext.families import Family
from controlnext.models.lora import lora_layers
from controlnext.weights.shipped import original_layout


def room_of(module: nn.Module, rank: int, original: Any = lambda _name: "") -> LoraRoom:
    """Return the room of a network; ``original`` gives a layer's name in original checkpoints."""
    layers: list[LoraLayer] = []
    down = up = 0
    for name, layer in lora_layers(module):
        height, width, *kernel = layer.weight.shape
        high, wide = kernel or (1, 1)
        after = down + width * high * wide, up + height
        layers.append(LoraLayer(name, (down, after[0]), (up, after[1]), (high, wide), original(name)))
        down, up = after
    return LoraRoom(rank, layers)


def manifest_with_room(family: Family, modules: dict[str, nn.Module], rank: int = 8) -> Manifest:
    """Return a manifest whose graphs are those of these networks."""
    graphs = {}
    for name, module in modules.items():
        room = room_of(module, rank, _original(family, name, module))
        graphs[name] = Graph(name, "fp32", [], [], lora=room)  # type: ignore[arg-type]
    content = {"graphs": graphs, "configs": {}, "options": {}, "sources": [], "tools": {}, "files": {}}
    variant = next(iter(family.variants))
    return Manifest(schema=SCHEMA, family=family.name, variant=variant, precision="fp32", **content)  # type: ignore[arg-type]


def _original(family: Family, name: str, module: nn.Module) -> Any:
    if name != family.denoiser:
        return lambda _name: ""
    layout = original_layout(family, name, dict(module.config))  # type: ignore[arg-type]

    def original(layer: str) -> str:
        try:
            return layout(f"{layer}.weight").name.removesuffix(".weight")
        except CheckpointError:
            return ""

    return original
