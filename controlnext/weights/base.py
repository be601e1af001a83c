"""The base model: a diffusers folder, a single-file checkpoint, or a hub id; a replacement VAE likewise."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from controlnext.errors import CheckpointError
from controlnext.manifest import Source
from controlnext.registry import Family, Network
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor, first_line
from controlnext.weights.networks import complete_config, empty_module, match, shapes_of
from controlnext.weights.original import from_original, layout
from controlnext.weights.places import Place, choose_weights, locate, read_weights
from controlnext.weights.tokenizers import read_tokenizer, shipped_clip_tokenizer

log = logging.getLogger(__name__)

_STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model", "pytorch_model")}
_INDEX = "model_index.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_TOKENIZER_FILES = (".json", ".txt", ".model")


@dataclass
class Part:
    """One network of the base: its configuration, and its tensors under the names that it expects."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]


@dataclass
class Base:
    """The base model; see :class:`controlnext.weights.Checkpoint` for what the entries hold."""

    parts: dict[str, Part] = field(default_factory=dict)
    tokenizers: dict[str, str] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)


def shipped(family: Family) -> Path:
    """The folder with the family's configurations: a diffusers folder without weights."""
    return Path(__file__).parent / "configs" / family.name


def read_base(family: Family, given: str | Path, vae: str | Path | None) -> Base:
    """The base model, with ``vae`` in the place of its own where one is given."""
    place = locate(given, partial(_choose_base, family))
    base = _read_single_file(family, place) if place.path.is_file() else _read_folder(family, place)
    if vae is not None:
        base.sources = [source for source in base.sources if source.role != "vae"]
        base.parts["vae"], sources = _read_vae(family, vae, base.parts["vae"].config)
        base.sources += sources
    return base


def read_shipped(
    family: Family, tensors: Callable[[str, Mapping[str, tuple[int, ...]]], dict[str, LazyTensor]]
) -> Base:
    """The family's full-size architecture; ``tensors`` makes a network's tensors from its name and shapes."""
    folder = shipped(family)
    base = Base()
    for name, network in family.networks.items():
        config = complete_config(network, read_json(folder / network.folder / "config.json"))
        base.parts[name] = Part(config, tensors(name, shapes_of(empty_module(network, config))))
    _add_shipped(base, family)
    return base


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises :class:`CheckpointError` where the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; get the folder again") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no readable JSON: {first_line(error)}; get the file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no configuration; get the file again")
    return content


def _read_folder(family: Family, place: Place) -> Base:
    folder, base = place.path, Base()
    _check_folder(family, folder)
    for name, network in family.networks.items():
        inside = folder / network.folder
        if network.optional and not (inside / "config.json").is_file():
            continue
        if network.tokenizer and not (folder / network.tokenizer).is_dir():
            log.warning("%s has no %s: %s is left out", place.name, network.tokenizer, network.folder)
            continue
        base.parts[name], sources = _read_network(network, place, inside, name)
        base.sources += sources
        if network.tokenizer:
            config = base.parts[name].config
            base.tokenizers[network.tokenizer] = read_tokenizer(
                folder / network.tokenizer, config["max_position_embeddings"], config["vocab_size"]
            )
    base.scheduler = _without_private(read_json(folder / _SCHEDULER))
    base.options = _options(family, folder)
    return base


def _check_folder(family: Family, folder: Path) -> None:
    wanted = [f"{network.folder}/config.json" for network in family.networks.values() if not network.optional]
    missing = [name for name in (*wanted, _SCHEDULER) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is no diffusers folder of {family.name}: it lacks {', '.join(missing)}; give such a folder,"
            " a single-file .safetensors checkpoint or a hub id"
        )


def _read_network(network: Network, place: Place, folder: Path, role: str) -> tuple[Part, list[Source]]:
    try:
        config = complete_config(network, read_json(folder / "config.json"))
    except CheckpointError as error:
        raise CheckpointError(f"{place.name}: {error}") from error
    found, sources = read_weights(place, folder, _STEMS[network.library], role)
    expected = shapes_of(empty_module(network, config))
    return Part(config, match(found, expected, f"{place.name}: {network.folder}")), sources


def _options(family: Family, folder: Path) -> dict[str, Any]:
    """The pipeline options that the shipped index lists, as the base's index has them."""
    default = read_json(shipped(family) / _INDEX)
    index = read_json(folder / _INDEX) if (folder / _INDEX).is_file() else {}
    return {key: index.get(key, value) for key, value in default.items() if not key.startswith("_")}


def _without_private(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}


def _read_single_file(family: Family, place: Place) -> Base:
    found, sources = read_weights(place, place.path, (), "base")
    base, folder = Base(sources=sources), shipped(family)
    for name, network in family.networks.items():
        config = complete_config(network, read_json(folder / network.folder / "config.json"))
        tensors = _section(family, name, found)
        if tensors:
            base.parts[name] = Part(config, _convert(family, name, config, tensors, place.name))
        elif not network.optional:
            looks = looks_like({key: tensor.shape for key, tensor in found.items()})
            raise CheckpointError(
                f"{place.path} is no complete {family.name} checkpoint: it has no {name} and looks like {looks}"
            )
    _add_shipped(base, family)
    return base


def _section(family: Family, name: str, found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    prefix = read_json(shipped(family) / "single_file.json")[name]["prefix"]
    return {key.removeprefix(prefix): tensor for key, tensor in found.items() if key.startswith(prefix)}


def original_layout(family: Family, name: str, config: Mapping[str, Any]) -> Callable[[str], Any]:
    """The original names of one of the family's networks."""
    return layout(read_json(shipped(family) / "single_file.json")[name]["layout"], config)


def _convert(
    family: Family, name: str, config: Mapping[str, Any], found: Mapping[str, LazyTensor], what: str
) -> dict[str, LazyTensor]:
    """Tensors of original (or today's) names under today's names, strictly matched."""
    expected = shapes_of(empty_module(family.networks[name], config))
    converted = from_original(found, original_layout(family, name, config), expected)
    return match(converted, expected, f"{what}: {name}")


def _add_shipped(base: Base, family: Family) -> None:
    """The shipped tokenizers of the text encoders that are there, the scheduler and the options."""
    folder = shipped(family)
    for name, part in base.parts.items():
        tokenizer = family.networks[name].tokenizer
        if tokenizer:
            config = part.config
            base.tokenizers[tokenizer] = shipped_clip_tokenizer(
                folder / tokenizer, config["max_position_embeddings"], config["vocab_size"]
            )
    base.scheduler = read_json(folder / _SCHEDULER)
    base.options = _options(family, folder)


def _read_vae(family: Family, given: str | Path, config: dict[str, Any]) -> tuple[Part, list[Source]]:
    """A VAE's folder, a diffusers folder with one inside, a hub id, or a file.

    A file that has its ``config.json`` beside it is read with that, any other with the base VAE's ``config``.
    """
    network = family.networks["vae"]
    place = locate(given, partial(_choose_vae, network))
    folder = place.path
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            folder = folder / network.folder
        return _read_network(network, place, folder, "vae")
    found, sources = read_weights(place, place.path, (), "vae")
    beside = place.path.with_name("config.json")
    if beside.is_file() and read_json(beside).get("_class_name") == network.cls:
        config = complete_config(network, read_json(beside))
    found = _section(family, "vae", found) or found
    return Part(config, _convert(family, "vae", config, found, place.name)), sources


def _choose_base(family: Family, names: Sequence[str]) -> list[str]:
    """The files of a hub repository that make a diffusers folder of this family."""
    chosen = [name for name in names if name in (_INDEX, _SCHEDULER)]
    for network in family.networks.values():
        chosen += _choose_network(network, names)
        tokenizer = f"{network.tokenizer}/"
        chosen += [n for n in names if n.startswith(tokenizer) and n.endswith(_TOKENIZER_FILES)]
    return chosen


def _choose_network(network: Network, names: Sequence[str]) -> list[str]:
    prefix = f"{network.folder}/"
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return [prefix + name for name in ("config.json", *choose_weights(inside, _STEMS[network.library]))]


def _choose_vae(network: Network, names: Sequence[str]) -> list[str]:
    if "config.json" in names:
        return ["config.json", *choose_weights(names, _STEMS[network.library])]
    return _choose_network(network, names)
