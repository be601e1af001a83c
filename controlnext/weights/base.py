"""The base model: a diffusers folder, a single-file checkpoint or a hub id; a replacement VAE likewise."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from controlnext import registry
from controlnext.errors import CheckpointError
from controlnext.manifest import Source
from controlnext.registry import Family, Network
from controlnext.weights.json_files import INDEX, read_json
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import (
    complete_config,
    computed_tensors,
    empty_module,
    match,
    named_today,
    shapes_of,
)
from controlnext.weights.noise import random_tensors
from controlnext.weights.original import from_original
from controlnext.weights.places import Place, choose_weights, locate, read_weights
from controlnext.weights.shipped import (
    PREPROCESSOR,
    SCHEDULER,
    original_layout,
    read_options,
    read_scheduler,
    section,
    shipped_config,
    shipped_folder,
    shipped_tokenizer,
)
from controlnext.weights.tokenizers import check_lengths, read_tokenizer, stand_in_tokenizer

log = logging.getLogger(__name__)

_STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model", "pytorch_model")}
_TOKENIZER_FILES = (".json", ".txt", ".model")

# UNets that no family has, told by their configurations
_OTHER_BASES = (
    ("an inpainting model", {"in_channels": 9}),
    ("Stable Diffusion 2", {"use_linear_projection": True, "cross_attention_dim": 1024}),
)


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
    folder: Path | None = None


def read_base(
    family: Family, given: str | Path, vae: str | Path | None, leave_out: Collection[str] = ()
) -> Base:
    """The base model, with ``vae`` in the place of its own where one is given.

    The optional networks that ``leave_out`` names are neither fetched nor read.
    """
    family = _without(family, leave_out)
    place = locate(given, partial(_choose_base, family))
    base = _read_single_file(family, place) if place.path.is_file() else _read_folder(family, place)
    if vae is not None:
        base.sources = [source for source in base.sources if source.role != "vae"]
        base.parts["vae"], sources = _read_vae(family, vae, base.parts["vae"].config)
        base.sources += sources
    return base


def random_base(family: Family, seed: int, leave_out: Collection[str] = ()) -> Base:
    """The family's full-size architecture with random numbers, without the networks that ``leave_out`` names.

    A text encoder whose vocabulary is not shipped has a stand-in tokenizer.
    """
    family = _without(family, leave_out)
    base = _shipped_base(family)
    for name, network in family.networks.items():
        config = shipped_config(family, network)
        module = empty_module(network, config)
        tensors = random_tensors(shapes_of(module), name, seed) | computed_tensors(module)
        base.parts[name] = Part(config, tensors)
        if network.tokenizer:
            content = shipped_tokenizer(family, network, config) or stand_in_tokenizer(network)
            base.tokenizers[network.tokenizer] = content
    return base


def _without(family: Family, leave_out: Collection[str]) -> Family:
    return replace(family, networks={name: n for name, n in family.networks.items() if name not in leave_out})


def _shipped_base(family: Family) -> Base:
    folder = shipped_folder(family)
    return Base(read_scheduler(family, folder), read_options(family, folder))


def _read_folder(family: Family, place: Place) -> Base:
    folder = place.path
    _check_folder(family, folder)
    base = Base(read_scheduler(family, folder), read_options(family, folder), folder=folder)
    for name, network in family.networks.items():
        inside = folder / network.folder
        if network.optional and not (inside / "config.json").is_file():
            continue
        if network.tokenizer and not (folder / network.tokenizer).is_dir():
            log.warning("%s has no %s: %s is left out", place.name, network.tokenizer, network.folder)
            continue
        try:
            base.parts[name], sources = _read_network(network, place, inside)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_other_base(family, folder)}") from error
        base.sources += sources
        if network.tokenizer:
            content = read_tokenizer(folder / network.tokenizer, network, base.parts[name].config)
            base.tokenizers[network.tokenizer] = content
    check_lengths(base.tokenizers, family.networks.values())
    return base


def _check_folder(family: Family, folder: Path) -> None:
    required = [
        f"{network.folder}/config.json" for network in family.networks.values() if not network.optional
    ]
    missing = [name for name in (*required, SCHEDULER) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is no diffusers folder of {family.name}: it lacks {', '.join(missing)}"
            f"{_other_base(family, folder) or '; give such a folder, a single-file checkpoint or a hub id'}"
        )


def _other_base(family: Family, folder: Path) -> str:
    """What a diffusers folder looks like, as the end of a message; nothing if it is of the family."""
    if _has_denoiser(family, folder):
        return ""
    for other in registry.FAMILIES.values():
        if _has_denoiser(other, folder):
            return (
                f"; it looks like a base of {other.name} ({other.title}): give --model {other.name},"
                f" or a base of {family.name} ({family.title})"
            )
    unet = folder / "unet" / "config.json"
    config = read_json(unet) if unet.is_file() else {}
    for title, values in _OTHER_BASES:
        if all(config.get(key) == value for key, value in values.items()):
            return f"; it looks like {title}: give a base of {family.name} ({family.title})"
    return ""


def _has_denoiser(family: Family, folder: Path) -> bool:
    network = family.networks[family.denoiser]
    try:
        complete_config(network, read_json(folder / network.folder / "config.json"))
    except CheckpointError:
        return False
    return True


def _read_network(network: Network, place: Place, folder: Path) -> tuple[Part, list[Source]]:
    """A network of a diffusers checkpoint from its own ``folder``, which is ``place`` or in it."""
    try:
        config = complete_config(network, read_json(folder / "config.json"))
    except CheckpointError as error:
        raise CheckpointError(f"{place.name}: {error}") from error
    found, sources = read_weights(place, folder, _STEMS[network.library], network.folder)
    expected = shapes_of(empty_module(network, config))
    return Part(config, match(found, expected, f"{place.name}: {network.folder}")), sources


def _read_single_file(family: Family, place: Place) -> Base:
    base = _shipped_base(family)
    found, base.sources = read_weights(place, place.path, (), "base")
    for name, network in family.networks.items():
        there = bool(section(family, name, found))
        if not there and network.optional:
            continue
        if not there:
            raise CheckpointError(
                f"{place.path} is no complete {family.name} checkpoint: it has no {name} and looks like"
                f" {looks_like(found)}; give a checkpoint with all networks or a diffusers folder"
            )
        config = shipped_config(family, network)
        tokenizer = shipped_tokenizer(family, network, config) if network.tokenizer else ""
        if tokenizer is None:
            log.warning(
                "%s: its %s is left out, as the vocabulary of that is not shipped; give a diffusers folder to"
                " keep it, or --no-t5 to do without this line",
                place.name,
                name,
            )
            continue
        base.parts[name] = Part(config, _convert(family, name, config, found, place.name))
        if tokenizer:
            base.tokenizers[network.tokenizer] = tokenizer
    return base


def _convert(
    family: Family, name: str, config: Mapping[str, Any], found: Mapping[str, LazyTensor], what: str
) -> dict[str, LazyTensor]:
    """One network out of a checkpoint or a file of its own, under today's names, strictly matched."""
    expected = shapes_of(empty_module(family.networks[name], config))
    converted = found
    if not named_today(found, expected):
        inside = section(family, name, found) or found
        converted = from_original(inside, original_layout(family, name, config), expected)
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
        return _read_network(network, place, folder)
    found, sources = read_weights(place, place.path, (), "vae")
    beside = place.path.with_name("config.json")
    if beside.is_file() and read_json(beside).get("_class_name") == network.cls:
        config = complete_config(network, read_json(beside))
    return Part(config, _convert(family, "vae", config, found, place.name)), sources


def _choose_base(family: Family, names: Sequence[str]) -> list[str]:
    """The files of a hub repository that make a diffusers folder of this family."""
    chosen = [name for name in names if name in (INDEX, SCHEDULER, PREPROCESSOR)]
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
