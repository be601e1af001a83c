"""Loading a checkpoint from whatever the user gave."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from controlnext.errors import CheckpointError, InputError
from controlnext.manifest import Source
from controlnext.registry import Family, Variant
from controlnext.weights import control as control_weights
from controlnext.weights import trained
from controlnext.weights.base import Base, random_base, read_base
from controlnext.weights.checkpoint import Checkpoint, NetworkWeights
from controlnext.weights.lazy import LazyTensor, LazyTensors
from controlnext.weights.networks import shapes_of
from controlnext.weights.noise import random_tensors
from controlnext.weights.places import Place, choose_weights, locate, read_weights
from controlnext.weights.shipped import original_layout

log = logging.getLogger(__name__)


def load_checkpoint(
    family: Family,
    *,
    variant: str = "auto",
    base: str | Path | None = None,
    control: str | Path | None = None,
    unet_weights: str | Path | None = None,
    unet_increments: bool = False,
    vae: str | Path | None = None,
    random_seed: int | None = None,
) -> Checkpoint:
    """Find, check and open a base model and its ControlNeXt weights; tensors are read when asked for.

    ``base``: diffusers folder, single-file ``.safetensors`` checkpoint or hub id (default: the family's).
    ``control``, ``unet_weights``, ``vae``: file, folder or hub id (``owner/name[/folder]``).
    ``unet_weights``: trained tensors of the denoiser, under diffusers' or the original names; values, or
    with ``unet_increments`` differences to add. Where they are not given and ``control`` is a folder or hub
    id that holds ``unet.safetensors`` (or ``.bin``), those are used, as increments if the family is
    published so.
    ``random_seed``: the full-size architecture with random numbers instead of any file.

    Raises :class:`CheckpointError` naming the files or tensors that are missing or do not fit.
    """
    if random_seed is not None:
        given = {"base": base, "control": control, "unet_weights": unet_weights, "vae": vae}
        return _random_checkpoint(family, variant, random_seed, [key for key, v in given.items() if v])
    if control is None:
        raise InputError(
            "no control weights are given; give --control a file, a folder or a hub id"
            " (or --random-weights a seed, to try the architecture)"
        )
    place = locate(control, _choose_control)
    found, sources = read_weights(place, place.path, control_weights.STEMS, "control")
    chosen, tensors = control_weights.match_control(found, family, variant, place.name)
    loaded = read_base(family, base or family.default_base, vae)
    if unet_weights is not None:
        unet_place = locate(unet_weights, _choose_unet)
        sources += _apply_trained(family, loaded, unet_place, unet_increments)
    elif _has_trained(place):
        log.info("%s: the UNet tensors beside the control module are used", place.name)
        sources += _apply_trained(family, loaded, place, unet_increments or family.increments)
    elif unet_increments:
        raise InputError("--unet-increments says how to apply --unet-weights, which are not given; give both")
    return _assemble(family, chosen, loaded, tensors, sources, random=False)


def _assemble(
    family: Family,
    variant: Variant,
    base: Base,
    control: dict[str, LazyTensor],
    sources: list[Source],
    random: bool,
) -> Checkpoint:
    width = variant.injection.width(base.parts[family.denoiser].config)
    if variant.control.out_channels != width:
        raise CheckpointError(
            f"the control module gives {variant.control.out_channels} channels, the base's {family.denoiser}"
            f" has {width} where they are injected; give weights that were trained for this architecture"
        )
    networks = {
        name: NetworkWeights(family.networks[name], part.config, LazyTensors(part.tensors, name))
        for name, part in base.parts.items()
    }
    networks["control"] = NetworkWeights(None, asdict(variant.control), LazyTensors(control, "control"))
    return Checkpoint(
        family,
        variant,
        networks,
        base.tokenizers,
        base.scheduler,
        base.options,
        base.sources + sources,
        random,
    )


def _apply_trained(family: Family, base: Base, place: Place, increments: bool) -> list[Source]:
    part = base.parts[family.denoiser]
    found, sources = read_weights(place, place.path, trained.STEMS, family.denoiser)
    layout = original_layout(family, family.denoiser, part.config)
    part.tensors = trained.apply_trained(part.tensors, found, layout, increments, place.name)
    how = "increments" if increments else "values"
    return [msgspec.structs.replace(source, role=f"{family.denoiser} {how}") for source in sources]


def _random_checkpoint(family: Family, variant: str, seed: int, given: list[str]) -> Checkpoint:
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(
            f"random weights take the place of every file: leave {options} or --random-weights out"
        )
    chosen = next(iter(family.variants.values())) if variant == "auto" else family.variant(variant)
    shapes = shapes_of(control_weights.empty_control(chosen.control))
    control = random_tensors(shapes, "control", seed)
    sources = [Source("random", f"seed {seed}")]
    return _assemble(family, chosen, random_base(family, seed), control, sources, random=True)


def _has_trained(place: Place) -> bool:
    if place.path.is_file():
        return False
    return bool(choose_weights((path.name for path in place.path.iterdir()), trained.STEMS[:1]))


def _choose_control(names: Sequence[str]) -> list[str]:
    return choose_weights(names, control_weights.STEMS) + choose_weights(names, trained.STEMS[:1])


def _choose_unet(names: Sequence[str]) -> list[str]:
    return choose_weights(names, trained.STEMS)
