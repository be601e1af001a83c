"""Reads LoRAs, as diffusers, peft and kohya's sd-scripts save them, without PyTorch.

It accepts the files that the export fuses (:mod:`controlnext.weights.lora`), as ``.safetensors``, and refuses
the same others.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from controlnext.bundle.manifest import Graph, LoraLayer, LoraRoom, Manifest
from controlnext.errors import CheckpointError
from controlnext.families import get_family
from controlnext.lora_names import METADATA, STRENGTH, layer_key, listing, matched, network_of
from controlnext.runtime.loras.tensor_file import SUFFIX, TensorFile, read_tensors
from controlnext.types import FloatArray

logger = logging.getLogger(__name__)

_USUAL = f"pytorch_lora_weights{SUFFIX}"
_PEFT_RANK = 8
"""peft's ``r`` and ``lora_alpha`` where a file's settings do not say them."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A LoRA's matrices for one graph: ``down`` (rank, columns) and ``up`` (rank, columns), as the graph's
    inputs have them, with alphas multiplied into ``up``."""

    down: FloatArray
    up: FloatArray

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return len(self.down)


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA of a ``file``, packed for each graph that it changes; calls choose it by its ``name``."""

    name: str
    graphs: Mapping[str, Packed]
    file: Path

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return max((packed.rank for packed in self.graphs.values()), default=0)


@dataclass
class _Pair:
    """The names in the file of a layer's two matrices, and of its alpha, which need not be there."""

    alpha: str
    first: str = ""
    second: str = ""


def read_lora(name: str, path: Path, manifest: Manifest) -> Lora:
    """Read the LoRA at ``path``, a file or a directory with one, for the graphs of a bundle.

    The part for a text encoder that the bundle does not have is ignored with a warning. Raises
    :class:`CheckpointError` for a file that is not a plain LoRA, or not for this bundle.
    """
    file = _weight_file(path)
    found = read_tensors(file)
    shapes = {tensor: array.shape for tensor, array in found.tensors.items()}
    matches = matched(shapes, file.name, lambda: f"it has {len(shapes)} tensors")
    networks = _by_network(file.name, manifest, matches)
    settings = _settings(file, found)
    graphs = {}
    for graph_name, graph in manifest.graphs.items():
        keyed = networks.pop(graph.network, None)
        if keyed and graph.lora:
            what = f"{file.name} does not fit the bundle's {graph.network}"
            pairs = _by_layer(what, graph.lora, keyed, shapes)
            graphs[graph_name] = _packed(file.name, graph, graph.lora, pairs, found, settings)
    for network in networks:
        logger.warning("%s: its tensors for %s are left out; the bundle has no room", file.name, network)
    return Lora(name, graphs, file)


def _weight_file(path: Path) -> Path:
    """Return the file of a LoRA: of those in a directory the one with diffusers' name, or the only one."""
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else None
    except OSError as error:
        # a name that is too long, a directory that may not be read
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; give a LoRA's {SUFFIX} file", argument="lora"
        ) from error
    if inside is not None:
        files = [p for p in inside if p.suffix.lower() == SUFFIX]
        usual = [file for file in files if file.name == _USUAL] or files
        if len(usual) != 1:
            raise CheckpointError(
                f"{path} has no {_USUAL} and not exactly one {SUFFIX} file, but"
                f" {', '.join(file.name for file in files[:8]) or 'none'}; give the LoRA's file itself"
            )
        return usual[0]
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a LoRA's {SUFFIX} file", argument="lora")
    if path.suffix.lower() != SUFFIX:
        raise CheckpointError(
            f"{path} is not a {SUFFIX} file, the only kind that is read at run time; convert it with"
            " safetensors, or fuse it at export",
            argument="lora",
        )
    return path


def _by_network(
    what: str, manifest: Manifest, matches: Mapping[str, re.Match[str]]
) -> dict[str, dict[str, _Pair]]:
    """Return the pairs of matrices by network and :func:`~controlnext.lora_names.layer_key`."""
    family = get_family(manifest.family)
    networks: dict[str, dict[str, _Pair]] = {}
    unknown = []
    for name, match in matches.items():
        network, key = network_of(match[1])
        if network in family.networks:
            pair = networks.setdefault(network, {}).setdefault(key, _Pair(f"{match[1]}.alpha"))
            setattr(pair, "first" if match[2] else "second", name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{what} does not fit {family.name}: {listing({'of other networks': unknown})}; give a LoRA of"
            f" {family.name} as diffusers or kohya's sd-scripts save it"
        )
    return networks


def _by_layer(
    what: str, room: LoraRoom, keyed: Mapping[str, _Pair], shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[LoraLayer, _Pair]]:
    """Return the layers of a network that the file changes; raise :class:`CheckpointError` for others."""
    known = {layer_key(layer.original): layer for layer in room.layers if layer.original}
    known |= {layer_key(layer.name): layer for layer in room.layers}
    unknown = [pair.first for key, pair in keyed.items() if key not in known]
    pairs = [(known[key], pair) for key, pair in keyed.items() if key in known]
    misshaped = [
        f"{layer.name} {list(shapes[pair.second])} x {list(shapes[pair.first])}"
        for layer, pair in pairs
        if not _fits(layer, shapes[pair.first], shapes[pair.second])
    ]
    if unknown or misshaped:
        problems = listing({"unknown": unknown, "mis-shaped": misshaped})
        raise CheckpointError(f"{what}: {problems}; give a LoRA that was trained for this architecture")
    return pairs


def _fits(layer: LoraLayer, first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Return whether matrices of these shapes are a layer's. A linear layer's may be 1 x 1 convolutions."""
    (start, stop), (top, bottom) = layer.down, layer.up
    high, wide = layer.kernel
    channels = (stop - start) // (high * wide)
    kernels = [(high, wide), *([()] if (high, wide) == (1, 1) else [])]
    rank = first[0]
    return first[1:] in [(channels, *kernel) for kernel in kernels] and second in [
        (bottom - top, rank),
        (bottom - top, rank, 1, 1),
    ]


def _settings(file: Path, found: TensorFile) -> dict[str, Any]:
    try:
        return msgspec.json.decode(found.metadata.get(METADATA, "{}"), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its {METADATA} is damaged; get it again") from error


def _packed(
    what: str,
    graph: Graph,
    room: LoraRoom,
    pairs: Sequence[tuple[LoraLayer, _Pair]],
    found: TensorFile,
    settings: Mapping[str, Any],
) -> Packed:
    """Return the matrices of a graph side by side, those of a smaller rank with zeros below."""
    tensors = found.tensors
    rank = max(len(tensors[pair.first]) for _, pair in pairs)
    named = {key: f"{graph.network}.{key}" for key in STRENGTH}
    own = {key: settings[name] for key, name in named.items() if name in settings}
    down, up = (np.zeros((rank, columns), np.float32) for columns in room.columns)
    for layer, pair in pairs:
        first, second = tensors[pair.first], tensors[pair.second]
        count = len(first)
        if first.ndim > 2:
            first = first.transpose(0, 2, 3, 1)
        alpha = float(tensors[pair.alpha]) / count if pair.alpha in tensors else 1.0
        strength = np.float32(alpha * _strength(what, own, layer.name))
        down[:count, slice(*layer.down)] = first.reshape(count, -1)
        up[:count, slice(*layer.up)] = second.reshape(-1, count).T * strength
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise CheckpointError(f"{what} holds NaN or infinity; get an undamaged copy of the weights")
    return Packed(down, up)


def _strength(what: str, settings: Mapping[str, Any], layer: str) -> float:
    """Return the factor of a layer by peft's settings; 1 without settings."""
    try:
        rank = _of_pattern(settings.get("rank_pattern", {}), layer, settings.get("r", _PEFT_RANK))
        alpha = _of_pattern(settings.get("alpha_pattern", {}), layer, settings.get("lora_alpha", _PEFT_RANK))
        if not rank > 0:
            raise ValueError(f"r is {rank}")
        return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"{what}: its settings {dict(settings)} make no sense: {error}; get the file again"
        ) from error


def _of_pattern(pattern: Mapping[str, Any], layer: str, usual: Any) -> Any:
    """Return what the first of the patterns that a layer's name ends with says."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), usual)
