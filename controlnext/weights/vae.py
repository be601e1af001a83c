"""Reading of a VAE that is given separately: in place of the base's, or beside it for previews."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from controlnext.bundle.manifest import Source
from controlnext.errors import CheckpointError, InputError
from controlnext.families import Family, Network
from controlnext.families.graph_spec import CLASS
from controlnext.families.parts import TINY_VAE
from controlnext.families.schema import PREVIEW_VAE, VAE
from controlnext.weights.choices import beside_vae, choose_vae
from controlnext.weights.json_files import read_json, read_json_if_there
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import Shape, complete_config, empty_module, match, shapes_of
from controlnext.weights.parts import Part, convert, read_network
from controlnext.weights.shipped import shipped_config
from controlnext.weights.tiny_vae import DECODER, ENCODER, counterpart, from_tiny, is_tiny
from controlnext.weights.weight_source import WeightSource, read_weights, resolve

_CONFIG = "config.json"


def read_vae(family: Family, given: str | Path, base: WeightSource) -> tuple[Part, list[Source]]:
    """Read a VAE from its directory, a diffusers directory that contains one, a hub id of either, or a file.

    A file with a ``config.json`` beside it is read with that; any other file with the configuration of the
    VAE of ``base``, or of the family's default one if the base has none; a tiny VAE with the published one.
    """
    network = family.networks[VAE]
    weight_source = resolve(given, partial(choose_vae, network), beside_vae)
    if weight_source.path.is_dir():
        return _read_directory(family, network, weight_source)
    found, sources = read_weights(weight_source, weight_source.path, (), VAE)
    if is_tiny(found):
        config = {CLASS: TINY_VAE}
        _check_class(family, network, config, weight_source.name)
        return _read_tiny(network.of(config), weight_source, found, sources)
    beside = _beside(weight_source.path, network.cls)
    of_base = read_json_if_there(base.path / network.folder / _CONFIG)
    if beside:
        config = complete_config(network, beside, warn=True)
    elif of_base and of_base.get(CLASS, network.cls) == network.cls:
        config = complete_config(network, of_base)
    else:
        config = shipped_config(family, network)
    return Part(config, convert(family, VAE, config, found, weight_source.name)), sources


def read_preview_vae(family: Family, given: str | Path) -> tuple[Part, list[Source]]:
    """Read the tiny VAE of previews, from a directory, a hub id or a file, which may hold its decoder
    alone."""
    network = family.preview_vae
    if network is None:
        raise InputError(
            f"{family.title} has no tiny VAE for previews; remove `preview_vae`", argument="preview_vae"
        )
    # in a diffusers directory it is the VAE
    weight_source = resolve(given, partial(choose_vae, replace(network, folder=VAE)), beside_vae)
    if weight_source.path.is_dir():
        return _read_directory(family, network, weight_source)
    found, sources = read_weights(weight_source, weight_source.path, (), PREVIEW_VAE)
    if not is_tiny(found):
        raise CheckpointError(
            f"{weight_source.name} looks like {looks_like(found)}; previews need a tiny VAE of"
            f" {family.title} (diffusers' {network.cls}); give that, or remove `preview_vae`"
        )
    return _read_tiny(network, weight_source, found, sources, decoder_alone=True)


def _read_directory(
    family: Family, network: Network, weight_source: WeightSource
) -> tuple[Part, list[Source]]:
    alone = (weight_source.path / _CONFIG).is_file()
    directory = weight_source.path if alone else weight_source.path / VAE
    if not (directory / _CONFIG).is_file():
        raise CheckpointError(
            f"{weight_source.name or weight_source.path} has neither {_CONFIG} nor {VAE}/{_CONFIG}; give the"
            " directory of a VAE or of a diffusers model, or a file"
        )
    config = read_json(directory / _CONFIG)
    _check_class(family, network, config, weight_source.name)
    return read_network(network.of(config), weight_source, directory, warn=True)


def _check_class(family: Family, network: Network, config: Mapping[str, Any], name: str) -> None:
    cls = config.get(CLASS, network.cls)
    if cls in network.classes:
        return
    previews = family.preview_vae
    hint = "a tiny VAE" if network == previews else f"a VAE of {family.title}"
    if previews not in (None, network) and cls == TINY_VAE:
        hint += ", whose decoder sees several frames at a time, and this one for previews with `preview_vae`"
    raise CheckpointError(
        f"{name}: its {network.folder} is {cls}, expected {' or '.join(network.classes)}; give {hint}"
    )


def _read_tiny(
    network: Network,
    weight_source: WeightSource,
    found: Mapping[str, LazyTensor],
    sources: list[Source],
    decoder_alone: bool = False,
) -> tuple[Part, list[Source]]:
    """Read a tiny VAE from a file, and from that of its other half beside it; ``decoder_alone``: whether it
    may do without an encoder."""
    file, tensors = weight_source.path, from_tiny(found)
    for path in _other_half(file, tensors):
        more, files = read_weights(weight_source.directory, path, (), network.folder)
        tensors |= from_tiny(more)
        sources = sources + files
    given = _beside(file, network.cls)
    config = complete_config(network, given, warn=True) if given else published_tiny(network)
    expected = shapes_of(empty_module(network, config))
    if decoder_alone:
        tensors = _absent_encoder(tensors, expected) | tensors
    _check_halves(file, tensors)
    return Part(config, match(tensors, expected, f"{weight_source.name}: {network.folder}")), sources


def published_tiny(network: Network) -> dict[str, Any]:
    """Return the configuration of the published tiny VAEs, whose sizes are the defaults of diffusers'
    class."""
    return complete_config(network, {"latent_channels": network.required["latent_channels"]})


def _other_half(file: Path, tensors: Mapping[str, LazyTensor]) -> list[Path]:
    """Return the file beside ``file`` that has the encoder where this one has the decoder alone, and the
    reverse."""
    if len({name.partition(".")[0] for name in tensors}) > 1:
        return []
    other = counterpart(file.name)
    return [file.with_name(other)] if other and file.with_name(other).is_file() else []


def _check_halves(file: Path, tensors: Mapping[str, LazyTensor]) -> None:
    for half in (DECODER, ENCODER):
        if not any(name.startswith(f"{half}.") for name in tensors):
            other = counterpart(file.name)
            beside = f"put it beside it as {other}, or give" if other else "give"
            raise CheckpointError(
                f"{file} has no {half} of a tiny VAE; {beside} a directory or a file that has both"
            )


def _absent_encoder(
    tensors: Mapping[str, LazyTensor], expected: Mapping[str, Shape]
) -> dict[str, LazyTensor]:
    """Return zeros for an encoder that is not there: previews need none."""
    if any(name.startswith(ENCODER) for name in tensors):
        return {}
    return {
        name: LazyTensor.from_tensor(torch.zeros(()).expand(shape))
        for name, shape in expected.items()
        if name.startswith(ENCODER)
    }


def _beside(file: Path, cls: str) -> dict[str, Any]:
    """Return the configuration of a VAE of this class beside a file, or beside what a link leads to; empty if
    there is none."""
    files = [path.with_name(_CONFIG) for path in (file, file.resolve())]
    return next((one for one in map(read_json_if_there, files) if one.get(CLASS) == cls), {})
