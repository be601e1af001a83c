"""Reading of one network: from its own directory, or from a file of original or of today's tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlnext.bundle.manifest import Source
from controlnext.errors import CheckpointError
from controlnext.families import Family, Network
from controlnext.weights.choices import STEMS
from controlnext.weights.json_files import read_json
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import complete_config, empty_module, match, named_today, shapes_of
from controlnext.weights.original import from_original
from controlnext.weights.shipped import original_layout, section
from controlnext.weights.weight_source import WeightSource, read_weights


@dataclass
class Part:
    """One network of a checkpoint: its configuration, and its tensors by state-dict name."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]


def read_network(
    network: Network, weight_source: WeightSource, directory: Path, warn: bool = False
) -> tuple[Part, list[Source]]:
    """Read a network of a diffusers checkpoint from its own ``directory``, which is ``weight_source`` or in
    it; ``warn`` of unknown keys if that was not done before."""
    try:
        config = complete_config(network, read_json(directory / "config.json"), warn)
    except CheckpointError as error:
        raise CheckpointError(f"{weight_source.name}: {error}", argument=error.argument) from error
    found, sources = read_weights(weight_source, directory, STEMS[network.library], network.folder)
    expected = shapes_of(empty_module(network, config))
    return Part(config, match(found, expected, f"{weight_source.name}: {network.folder}")), sources


def convert(
    family: Family, name: str, config: Mapping[str, Any], found: Mapping[str, LazyTensor], what: str
) -> dict[str, LazyTensor]:
    """Take one network from a checkpoint or a file of its own, rename its tensors to today's names and match
    them strictly."""
    expected = shapes_of(empty_module(family.networks[name], config))
    converted = found
    if not named_today(found, expected):
        inside = section(family, name, found) or found
        converted = from_original(inside, original_layout(family, name, config), expected)
    try:
        return match(converted, expected, f"{what}: {name}")
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; the file looks like {looks_like(found)}", argument=error.argument
        ) from error
