"""The base model: a diffusers folder, a single-file checkpoint or a hub id; a replacement VAE likewise."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from controlnext.errors import CheckpointError
from controlnext.manifest import Source
from controlnext.registry import Family, Network
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import complete_config, empty_module, match, public, shapes_of
from controlnext.weights.noise import random_tensors
from controlnext.weights.original import from_original
from controlnext.weights.places import Place, choose_weights, locate, read_weights
from controlnext.weights.shipped import (
    INDEX,
    SCHEDULER,
    original_layout,
    pipeline_options,
    read_json,
    section,
    shipped_config,
    shipped_scheduler,
    shipped_tokenizer,
)
from controlnext.weights.tokenizers import read_tokenizer

log = logging.getLogger(__name__)

_STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model", "pytorch_model")}
_TOKENIZER_FILES = (".json", ".txt", ".model")


@dataclass
class Part:
    """One network of the base: its configuration, and its tensors under the names that it expects."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]


@dataclass
class Base:
    """The base model; see :class:`controlnext.weights.Checkpoint` for what the entries hold."""

    scheduler: dict[str, Any]
    options: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)
    tokenizers: dict[str, str] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)


def read_base(family: Family, given: str | Path, vae: str | Path | None) -> Base:
    """The base model, with ``vae`` in the place of its own where one is given."""
    place = locate(given, partial(_choose_base, family))
    base = _read_single_file(family, place) if place.path.is_file() else _read_folder(family, place)
    if vae is not None:
        base.sources = [source for source in base.sources if source.role != "vae"]
        base.parts["vae"], sources = _read_vae(family, vae, base.parts["vae"].config)
        base.sources += sources
    return base


def random_base(family: Family, seed: int) -> Base:
    """The family's full-size architecture with random numbers."""
    base = Base(shipped_scheduler(family), pipeline_options(family, {}))
    for name, network in family.networks.items():
        config = shipped_config(family, network)
        base.parts[name] = Part(config, random_tensors(shapes_of(empty_module(network, config)), name, seed))
        if network.tokenizer:
            base.tokenizers[network.tokenizer] = shipped_tokenizer(family, network, config)
    return base


def _read_folder(family: Family, place: Place) -> Base:
    folder = place.path
    _check_folder(family, folder)
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    base = Base(public(read_json(folder / SCHEDULER)), pipeline_options(family, index))
    what = f"{place.name} ({index.get('_class_name', 'without ' + INDEX)})"
    for name, network in family.networks.items():
        inside = folder / network.folder
        if network.optional and not (inside / "config.json").is_file():
            continue
        if network.tokenizer and not (folder / network.tokenizer).is_dir():
            log.warning("%s has no %s: %s is left out", place.name, network.tokenizer, network.folder)
            continue
        base.parts[name], sources = _read_network(network, place, inside, what)
        base.sources += sources
        if network.tokenizer:
            config = base.parts[name].config
            base.tokenizers[network.tokenizer] = read_tokenizer(
                folder / network.tokenizer, config["max_position_embeddings"], config["vocab_size"]
            )
    return base


def _check_folder(family: Family, folder: Path) -> None:
    required = [
        f"{network.folder}/config.json" for network in family.networks.values() if not network.optional
    ]
    missing = [name for name in (*required, SCHEDULER) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is no diffusers folder of {family.name}: it lacks {', '.join(missing)}; give such a"
            " folder, a single-file .safetensors checkpoint or a hub id"
        )


def _read_network(network: Network, place: Place, folder: Path, what: str) -> tuple[Part, list[Source]]:
    """A network of a diffusers checkpoint from its own ``folder``, which is ``place`` or in it."""
    try:
        config = complete_config(network, read_json(folder / "config.json"))
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error
    found, sources = read_weights(place, folder, _STEMS[network.library], network.folder)
    expected = shapes_of(empty_module(network, config))
    return Part(config, match(found, expected, f"{what}: {network.folder}")), sources


def _read_single_file(family: Family, place: Place) -> Base:
    found, sources = read_weights(place, place.path, (), "base")
    base = Base(shipped_scheduler(family), pipeline_options(family, {}), sources=sources)
    for name, network in family.networks.items():
        tensors = section(family, name, found)
        if tensors:
            config = shipped_config(family, network)
            base.parts[name] = Part(config, _convert(family, name, config, tensors, place.name))
            if network.tokenizer:
                base.tokenizers[network.tokenizer] = shipped_tokenizer(family, network, config)
        elif not network.optional:
            raise CheckpointError(
                f"{place.path} is no complete {family.name} checkpoint: it has no {name} and looks like"
                f" {looks_like(found)}; give a checkpoint with all networks or a diffusers folder"
            )
    return base


def _convert(
    family: Family, name: str, config: Mapping[str, Any], found: Mapping[str, LazyTensor], what: str
) -> dict[str, LazyTensor]:
    """Tensors of original (or today's) names under today's names, strictly matched."""
    expected = shapes_of(empty_module(family.networks[name], config))
    converted = from_original(found, original_layout(family, name, config), expected)
    try:
        return match(converted, expected, f"{what}: {name}")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; the file looks like {looks_like(found)}") from error


def _read_vae(family: Family, given: str | Path, config: dict[str, Any]) -> tuple[Part, list[Source]]:
    """A VAE's folder, a diffusers folder with one inside, a hub id of either, or a file.

    A file that has its ``config.json`` beside it is read with that, any other with the base VAE's ``config``.
    """
    network = family.networks["vae"]
    place = locate(given, partial(_choose_vae, network))
    if place.path.is_dir():
        alone = (place.path / "config.json").is_file()
        folder = place.path if alone else place.path / network.folder
        return _read_network(network, place, folder, place.name)
    found, sources = read_weights(place, place.path, (), "vae")
    beside = place.path.with_name("config.json")
    if beside.is_file() and read_json(beside).get("_class_name") == network.cls:
        config = complete_config(network, read_json(beside))
    found = section(family, "vae", found) or found
    return Part(config, _convert(family, "vae", config, found, place.name)), sources


def _choose_base(family: Family, names: Sequence[str]) -> list[str]:
    """The files of a hub repository that make a diffusers folder of this family."""
    chosen = [name for name in names if name in (INDEX, SCHEDULER)]
    for network in family.networks.values():
        chosen += _choose_network(network, names)
        if network.tokenizer:
            inside = f"{network.tokenizer}/"
            chosen += [n for n in names if n.startswith(inside) and n.endswith(_TOKENIZER_FILES)]
    return chosen


def _choose_network(network: Network, names: Sequence[str]) -> list[str]:
    prefix = f"{network.folder}/"
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    config = [name for name in inside if name == "config.json"]
    return [prefix + name for name in (*config, *choose_weights(inside, _STEMS[network.library]))]


def _choose_vae(network: Network, names: Sequence[str]) -> list[str]:
    if "config.json" in names:
        return ["config.json", *choose_weights(names, _STEMS[network.library])]
    return _choose_network(network, names)
