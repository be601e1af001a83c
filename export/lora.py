"""Room for LoRAs at run time: the layers of a graph that can have one, and their columns in its inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from controlnext.bundle.manifest import LoraLayer, LoraRoom
from controlnext.errors import CheckpointError, InputError
from controlnext.families import Family, GraphSpec
from controlnext.models.lora import lora_layers
from controlnext.weights import Checkpoint
from controlnext.weights.lora import check_takes_loras
from controlnext.weights.shipped import original_layout

_WEIGHT = ".weight"


MOST_RANK = 4096
"""A rank above the width of most layers: what LoRAs change of a layer has no larger one."""


def check_lora_rank(family: Family, rank: int) -> None:
    """Raise :class:`InputError` for a rank that is not an integer of that range, and for a family without
    LoRAs."""
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank <= MOST_RANK:
        raise InputError(
            f"lora_rank is {rank!r}; it must be an integer from 0 to {MOST_RANK}", argument="lora_rank"
        )
    if rank:
        check_takes_loras(family, "lora_rank")


def with_room(checkpoint: Checkpoint, spec: GraphSpec, rank: int) -> tuple[GraphSpec, LoraRoom | None]:
    """Return the graph ``spec`` with the inputs for LoRAs of up to ``rank``, and its room.

    A graph that is to have none is returned as it is.
    """
    room = _room(checkpoint, spec, rank)
    return (spec.with_loras(*room.columns), room) if room else (spec, None)


def _room(checkpoint: Checkpoint, spec: GraphSpec, rank: int) -> LoraRoom | None:
    """Return the room of the graph ``spec``; None if there is to be none.

    The denoiser and the text encoders that LoRAs are trained for have room: not the sequence encoder, for
    which diffusers loads none.
    """
    family = checkpoint.family
    if not rank or spec.name not in (family.denoiser, *family.prompt_encoders):
        return None
    network = checkpoint.networks[spec.network].meta_module(traced=True)
    original = _original_names(checkpoint, spec) if spec.name == family.denoiser else lambda _name: ""
    layers: list[LoraLayer] = []
    down = up = 0
    for name, module in lora_layers(network):
        kernel, width, height = _sizes(module)
        after = down + width * kernel[0] * kernel[1], up + height
        layers.append(LoraLayer(name, (down, after[0]), (up, after[1]), kernel, original(name)))
        down, up = after
    return LoraRoom(rank, layers)


def _sizes(module: nn.Linear | nn.Conv2d) -> tuple[tuple[int, int], int, int]:
    """Return a layer's kernel, and the numbers of its inputs and outputs."""
    height, width, *kernel = module.weight.shape
    high, wide = kernel or (1, 1)
    return (high, wide), width, height


def _original_names(checkpoint: Checkpoint, spec: GraphSpec) -> Callable[[str], str]:
    """Return a function from a layer's name to that in original checkpoints; empty where it is the same, or
    only a part of another layer."""
    layout = original_layout(checkpoint.family, spec.network, checkpoint.networks[spec.network].config)

    def original(name: str) -> str:
        try:
            origin = layout(name + _WEIGHT)
        except CheckpointError:
            return ""
        found = origin.name.removesuffix(_WEIGHT)
        return "" if origin.take is not None or found == name else found

    return original
