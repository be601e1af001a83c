"""Hints for messages about a base that does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from controlnext import families as registry
from controlnext.errors import CheckpointError
from controlnext.families import Family
from controlnext.families.graph_spec import CLASS
from controlnext.families.schema import VAE
from controlnext.weights.json_files import read_json
from controlnext.weights.layouts import argument_for, looks_like
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import complete_config
from controlnext.weights.shipped import section

GIVE_VAE = "; give another with `vae`: a directory, a file or a hub id"

# UNets of models that are not supported, recognized by their configurations
_OTHER_BASES = (
    ("InstructPix2Pix", {"in_channels": 8}),
    ("Stable Diffusion 2", {"use_linear_projection": True, "cross_attention_dim": 1024}),
)


@contextmanager
def tells_usual_base(family: Family, given: object) -> Iterator[None]:
    """Have an error of the block say which base is read where none was ``given``."""
    try:
        yield
    except CheckpointError as error:
        if given is not None or error.argument not in (None, "base"):
            raise
        told = f"no `base` is given, and of the usual one of {family.name}: {error}"
        raise CheckpointError(told, argument=error.argument) from error


def other_base(family: Family, directory: Path) -> str:
    """Return a hint about the model that a diffusers directory holds; empty if it is the family's."""
    if _has_denoiser(family, directory):
        return ""
    for other in registry.FAMILIES.values():
        if _has_denoiser(other, directory):
            return (
                f"; it looks like a base of {other.name} ({other.title}): give `family` {other.name},"
                f" or a base of {family.name} ({family.title})"
            )
    unet = directory / "unet" / "config.json"
    config = read_json(unet) if unet.is_file() else {}
    for title, values in _OTHER_BASES:
        if all(config.get(key) == value for key, value in values.items()):
            return f"; it looks like {title}: give a base of {family.name} ({family.title})"
    return ""


def _has_denoiser(family: Family, directory: Path) -> bool:
    network = family.networks[family.denoiser]
    try:
        complete_config(network, read_json(directory / network.folder / "config.json"))
    except CheckpointError:
        return False
    return True


def network_alone(family: Family, directory: Path) -> str:
    """Return a hint if a base's directory is the denoiser's or VAE's own; empty if it is not."""
    config = directory / "config.json"
    cls = read_json(config).get(CLASS) if config.is_file() else None
    for name, argument in ((family.denoiser, "unet_weights"), (VAE, "vae")):
        if name in family.networks and cls in family.networks[name].classes:
            return (
                f"; it is only a {name}: give it with `{argument}`, and with `base` a base that has the rest"
            )
    return ""


def lacking(family: Family, name: str, found: Mapping[str, LazyTensor], path: Path) -> str:
    """Return the message for a single-file checkpoint without the network ``name``."""
    title, argument = looks_like(found), argument_for(found)
    if name == VAE:
        return f"{path} {_without_vae(family, found)}"
    if argument:
        return (
            f"{path} is not a checkpoint of {family.name} but {title}: give it with `{argument}`, and with"
            " `base` a complete checkpoint, a diffusers directory or a hub id"
        )
    return (
        f"{path} is not a complete checkpoint of {family.name}: it has no {name} and looks like {title}; give"
        " a checkpoint with all networks, a diffusers directory or a hub id"
    )


def _without_vae(family: Family, found: Mapping[str, LazyTensor]) -> str:
    rest = {key: network for key, network in family.networks.items() if key not in (family.denoiser, VAE)}
    if any(section(family, key, found) for key in rest):
        return f"has no {VAE}{GIVE_VAE}"
    embeddings = all(network.optional for network in rest.values())
    return (
        f"has only a {family.denoiser} and no {', '.join((VAE, *rest))}: give it with `unet_weights`,"
        " and with `base` a base that has the rest"
        + ("; or give `vae` too, for a bundle that takes embeddings" if embeddings else "")
    )
