"""Reading of the base model and a replacement VAE: a diffusers directory, a single file or a hub id."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlnext.bundle.manifest import Setting, Source
from controlnext.errors import CheckpointError, blames
from controlnext.families import Family, Network
from controlnext.families.graph_spec import Config
from controlnext.families.schema import PREVIEW_VAE, VAE
from controlnext.image_prompts import IMAGE_ENCODER
from controlnext.weights.advice import GIVE_VAE, lacking, network_alone, other_base
from controlnext.weights.choices import choose_base
from controlnext.weights.json_files import INDEX, read_json, read_json_if_there
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.markers import marked_settings
from controlnext.weights.model_index import part_names
from controlnext.weights.networks import computed_tensors, empty_module, shapes_of
from controlnext.weights.parts import Part, convert, read_network
from controlnext.weights.random_weights import random_tensors
from controlnext.weights.scheduler import Scheduler, checked_scheduler, read_scheduler
from controlnext.weights.shipped import (
    SCHEDULER,
    original_layout,
    read_options,
    section,
    shipped_config,
    shipped_directory,
    shipped_tokenizer,
)
from controlnext.weights.tokenizers import check_lengths, read_tokenizer, stand_in_tokenizer
from controlnext.weights.vae import published_tiny, read_preview_vae, read_vae
from controlnext.weights.weight_source import WeightSource, read_weights, resolve

log = logging.getLogger(__name__)


@dataclass
class Base:
    """The base model; :class:`controlnext.weights.Checkpoint` describes the fields."""

    scheduler: Scheduler
    options: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)
    tokenizers: dict[str, str] = field(default_factory=dict)
    added_tokens: dict[str, list[str]] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    directory: Path | None = None


def read_base(
    family: Family,
    given: str | Path,
    vae: str | Path | None,
    leave_out: Collection[str] = (),
    scheduler: Config = MappingProxyType({}),
    preview_vae: str | Path | None = None,
) -> Base:
    """Read the base model; ``vae`` replaces its VAE, ``scheduler`` settings of its scheduler,
    ``preview_vae`` is a tiny VAE beside it.

    The optional networks in ``leave_out`` are neither downloaded nor read. Raises :class:`CheckpointError`
    for a base with settings that the family's graphs and samplers do not support.
    """
    parts, family = part_names(family), without_networks(family, leave_out)
    replaced = () if vae is None else (VAE,)
    weight_source = resolve(given, partial(choose_base, family, replaced))
    own = without_networks(family, replaced)
    if weight_source.path.is_file():
        base = _read_single_file(own, weight_source, scheduler)
    else:
        base = _read_directory(own, weight_source, scheduler, parts)
    if vae is not None:
        with blames("vae"):
            base.parts[VAE], sources = read_vae(family, vae, weight_source)
        base.sources += sources
        base.parts = {name: base.parts[name] for name in family.networks if name in base.parts}
    if preview_vae is not None:
        with blames("preview_vae"):
            base.parts[PREVIEW_VAE], sources = read_preview_vae(family, preview_vae)
        base.sources += sources
    return base


def random_base(
    family: Family,
    seed: int,
    leave_out: Collection[str] = (),
    scheduler: Config = MappingProxyType({}),
) -> Base:
    """Return the family's full-size architecture with random numbers, without the networks in ``leave_out``,
    with the scheduler settings ``scheduler``.

    A text encoder whose vocabulary is not shipped gets a stand-in tokenizer.
    """
    family = without_networks(family, leave_out)
    base = _shipped_base(family)
    base.scheduler = base.scheduler.given(family, scheduler).checked(family, "random weights")
    for name, network in family.known_networks.items():
        if name not in family.networks and name == IMAGE_ENCODER:
            continue  # belongs to the image prompts, of which there may be none
        config = _random_config(family, name, network)
        module = empty_module(network, config)
        tensors = random_tensors(shapes_of(module), name, seed) | computed_tensors(module)
        base.parts[name] = Part(config, tensors)
        if network.tokenizer:
            content = shipped_tokenizer(family, network, config) or stand_in_tokenizer(network)
            base.tokenizers[network.tokenizer] = content
    return base


def _random_config(family: Family, name: str, network: Network) -> dict[str, Any]:
    if name == PREVIEW_VAE:
        return published_tiny(network)
    return shipped_config(family, network)


def without_networks(family: Family, leave_out: Collection[str]) -> Family:
    """Return a family that does not have the networks in ``leave_out``."""
    return replace(family, networks={name: n for name, n in family.networks.items() if name not in leave_out})


def _shipped_base(family: Family) -> Base:
    directory = shipped_directory(family)
    return Base(read_scheduler(family, directory, Setting("shipped")), read_options(family, directory))


def _read_directory(
    family: Family, weight_source: WeightSource, settings: Config, parts: Collection[str]
) -> Base:
    directory = weight_source.path
    _check_directory(family, directory)
    try:
        scheduler = checked_scheduler(family, weight_source, settings, parts)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{other_base(family, directory)}", argument=error.argument) from error
    base = Base(scheduler, read_options(family, directory), directory=directory)
    for name, network in family.networks.items():
        inside = directory / network.folder
        if network.optional and not (inside / "config.json").is_file():
            _tell_absent(weight_source, network)
            continue
        if network.tokenizer and not (directory / network.tokenizer).is_dir():
            log.warning("%s has no %s: %s is left out", weight_source.name, network.tokenizer, network.folder)
            continue
        network = network.of(read_json_if_there(inside / "config.json"))
        try:
            base.parts[name], sources = read_network(network, weight_source, inside)
        except CheckpointError as error:
            hint = other_base(family, directory) or (GIVE_VAE if name == VAE else "")
            raise CheckpointError(f"{error}{hint}", argument=error.argument) from error
        base.sources += sources
        if network.tokenizer:
            content = read_tokenizer(directory / network.tokenizer, network, base.parts[name].config)
            base.tokenizers[network.tokenizer] = content
    check_lengths(base.tokenizers, family.networks.values())
    return base


def _tell_absent(weight_source: WeightSource, network: Network) -> None:
    """Warn of a missing network that the directory's index names, as after an interrupted download."""
    index = weight_source.path / INDEX
    named = read_json(index).get(network.folder) if index.is_file() else None
    if isinstance(named, list) and any(named):
        log.warning(
            "%s: the %s that its %s names is missing and is left out",
            weight_source.name,
            network.folder,
            INDEX,
        )


def _check_directory(family: Family, directory: Path) -> None:
    required = [
        f"{network.folder}/config.json" for network in family.networks.values() if not network.optional
    ]
    missing = [name for name in (*required, SCHEDULER) if not (directory / name).is_file()]
    if missing:
        hint = other_base(family, directory) or network_alone(family, directory)
        if not hint and missing == [f"{VAE}/config.json"]:
            hint = GIVE_VAE
        if not hint and missing == [SCHEDULER]:
            hint = _give_scheduler(family)
        raise CheckpointError(
            f"{directory} is not a diffusers directory of {family.name}: it lacks {', '.join(missing)}"
            f"{hint or '; give such a directory, a single-file checkpoint or a hub id'}"
        )


def _give_scheduler(family: Family) -> str:
    return (
        f"; no other file has the {family.denoiser}'s prediction type and schedule: copy into it the"
        f" {SCHEDULER} of the model that this one was made from, such as {family.default_base}"
    )


_FIRST_LAYER, _CHANNELS = "conv_in.weight", "in_channels"


def _with_channels(
    family: Family, name: str, config: dict[str, Any], found: Mapping[str, LazyTensor]
) -> dict[str, Any]:
    """Return a network's shipped configuration with the number of channels that a file's network takes, where
    the family has networks of several: UNets that were trained to inpaint."""
    network = family.networks[name]
    if not isinstance(network.required.get(_CHANNELS), frozenset):
        return config
    first = section(family, name, found).get(original_layout(family, name, config)(_FIRST_LAYER).name)
    if first is None or not network.accepts(_CHANNELS, first.shape[1]):
        return config
    return {**config, _CHANNELS: first.shape[1]}


def _read_single_file(family: Family, weight_source: WeightSource, settings: Config) -> Base:
    base = _shipped_base(family)
    found, base.sources = read_weights(weight_source, weight_source.path, (), "base")
    marked = base.scheduler.marked(marked_settings(family, weight_source.path, found))
    base.scheduler = marked.given(family, settings).checked(family, weight_source.name)
    for name, network in family.networks.items():
        if not section(family, name, found):
            if network.optional:
                continue
            raise CheckpointError(lacking(family, name, found, weight_source.path))
        config = _with_channels(family, name, shipped_config(family, network), found)
        tokenizer = shipped_tokenizer(family, network, config) if network.tokenizer else ""
        if tokenizer is None:
            log.warning(
                "%s: its %s is left out, as its vocabulary is not shipped; give a diffusers directory to"
                " keep it, or `leave_out` to silence this warning",
                weight_source.name,
                name,
            )
            continue
        base.parts[name] = Part(config, convert(family, name, config, found, weight_source.name))
        if tokenizer:
            base.tokenizers[network.tokenizer] = tokenizer
    return base
