"""Loading a checkpoint from the user's files or the hub."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlnext.bundle.manifest import Source
from controlnext.errors import InputError, blames
from controlnext.families import Family
from controlnext.image_prompts import IMAGE_ENCODER
from controlnext.tensor_spec import numbered_controls
from controlnext.weights import control as control_weights
from controlnext.weights import trained
from controlnext.weights.advice import tells_usual_base
from controlnext.weights.base import Base, random_base, read_base
from controlnext.weights.beside import tell_other_controls, tell_other_trained, tell_unused, trained_beside
from controlnext.weights.checkpoint import Checkpoint, NetworkWeights
from controlnext.weights.choices import (
    beside_control,
    choose_control,
    choose_trained,
)
from controlnext.weights.clip_skip import check_clip_skip
from controlnext.weights.control import ControlWeights, check_one_variant, check_width, match_control
from controlnext.weights.ip_adapter import Adapters, random_adapters, read_adapters
from controlnext.weights.lazy import LazyTensors
from controlnext.weights.lora import apply_loras
from controlnext.weights.markers import is_marker, marked_settings
from controlnext.weights.networks import shapes_of
from controlnext.weights.random_weights import random_tensors
from controlnext.weights.shipped import original_layout
from controlnext.weights.textual_inversion import add_inversions
from controlnext.weights.weight_source import WeightSource, read_weights, resolve, weight_files

log = logging.getLogger(__name__)

Given = str | Path


def load_checkpoint(
    family: Family,
    *,
    variant: str = "auto",
    base: Given | None = None,
    control: Given | Sequence[Given] | None = None,
    unet_weights: Given | Sequence[Given] | None = None,
    unet_increments: bool = False,
    vae: Given | None = None,
    preview_vae: Given | None = None,
    lora: Sequence[str] = (),
    textual_inversion: Sequence[str] = (),
    clip_skip: int = 0,
    ip_adapter: Sequence[Given] = (),
    ip_adapter_image_encoder: Given | None = None,
    leave_out: Collection[str] = (),
    scheduler: Mapping[str, Any] = MappingProxyType({}),
    random_seed: int | None = None,
) -> Checkpoint:
    """Find, check and open a base model and its ControlNeXt weights; tensors are read when asked for.

    ``base``: diffusers directory, single-file checkpoint or hub id (default: the family's).
    ``control``, ``unet_weights``, ``vae``: file, directory or hub id (``owner/name[@revision][/inside]``);
    several of the first two may be given. ``preview_vae``: likewise, a tiny VAE to decode previews with.
    ``variant``: of all controls; ``"auto"`` reads it off them.
    ``unet_weights``: trained tensors of the denoiser, under diffusers' or the original names; values, or
    with ``unet_increments`` differences to add. Where they are not given, those in the directory of a
    ``control`` (``unet.safetensors`` or ``.bin``) are used, as increments if the family is published so.
    ``lora``: ``PATH[:SCALE]`` of LoRAs, added to what all of the above gave.
    ``textual_inversion``: ``PATH[:TOKEN]`` of textual inversions, words that are added to the vocabulary.
    ``clip_skip``: number of last layers of the text encoders that prompts skip (not negative prompts).
    ``ip_adapter``: files or hub ids of IP-Adapters, with ``random_seed`` kinds (``"base"``, ``"plus"``);
    ``ip_adapter_image_encoder``: of their image encoder, by default ``image_encoder`` beside the first.
    ``leave_out``: optional networks of the registry that are not wanted, such as a large text encoder.
    ``scheduler``: settings that take the place of those of the base's scheduler configuration, by its keys
    (``prediction_type``, ``timestep_spacing``, ...).
    ``random_seed``: the full-size architecture with random numbers instead of any file.

    Raises :class:`CheckpointError` naming the files or tensors that are missing or do not fit.
    """
    if random_seed is not None:
        given = {"base": base, "control": control, "unet_weights": unet_weights, "vae": vae}
        given |= {"preview_vae": preview_vae, "lora": lora, "textual_inversion": textual_inversion}
        given |= {"ip_adapter_image_encoder": ip_adapter_image_encoder}
        _refuse_files([key for key, value in given.items() if value])
        return _random_checkpoint(family, variant, random_seed, clip_skip, leave_out, scheduler, ip_adapter)
    with blames("control"):
        weight_sources = _control_sources(family, _each(control))
        controls, sources = _read_controls(family, variant, weight_sources)
    with blames("base"), tells_usual_base(family, base):
        loaded = read_base(family, base or family.default_base, vae, leave_out, scheduler, preview_vae)
    with blames("control"):
        for one in controls:
            check_width(one, family, loaded.parts[family.denoiser].config)
    with blames("unet_weights" if unet_weights else "control"):
        sources += _find_trained(family, loaded, weight_sources, _each(unet_weights), unet_increments)
    sources += _adapt(family, loaded, lora, textual_inversion)
    check_clip_skip(family, loaded, clip_skip)
    adapters = read_adapters(family, loaded.parts[family.denoiser], ip_adapter, ip_adapter_image_encoder)
    return _assemble(family, loaded, controls, sources, clip_skip, random=False, adapters=adapters)


def _adapt(
    family: Family, loaded: Base, lora: Sequence[str], textual_inversion: Sequence[str]
) -> list[Source]:
    with blames("lora"):
        sources = apply_loras(family, loaded, lora)
    with blames("textual_inversion"):
        return sources + add_inversions(family, loaded, textual_inversion)


def _control_sources(family: Family, given: Sequence[Given]) -> list[WeightSource]:
    choices = partial(choose_control, family), partial(beside_control, family)
    return [resolve(one, *choices) for one in given]


def _each(given: Given | Sequence[Given] | None) -> list[Given]:
    if given is None:
        return []
    return [given] if isinstance(given, str | Path) else list(given)


def _read_controls(
    family: Family, variant: str, weight_sources: Sequence[WeightSource]
) -> tuple[list[ControlWeights], list[Source]]:
    if not weight_sources:
        note = f"; {family.note}" if family.note else ""
        raise InputError(
            "no control weights are given; give `control` a file, a directory or a hub id"
            f" (or `random_seed` a seed, to try the architecture){note}"
        )
    controls: list[ControlWeights] = []
    sources: list[Source] = []
    for number, weight_source in enumerate(weight_sources):
        role = _numbered("control", number)
        found, files = read_weights(weight_source, weight_source.path, control_weights.STEMS, role)
        controls.append(match_control(found, family, variant, weight_source.name))
        tell_other_controls(family, weight_source)
        sources += files
    check_one_variant(controls)
    return controls, sources


def _numbered(role: str, number: int) -> str:
    """Return ``"control"``, ``"control 2"``, ... for the numbers 0, 1, ..."""
    return role if number == 0 else f"{role} {number + 1}"


def _find_trained(
    family: Family, base: Base, controls: Sequence[WeightSource], given: Sequence[Given], increments: bool
) -> list[Source]:
    """Apply the trained tensors that are ``given``, or those beside the ``controls`` if none are."""
    if given:
        weight_sources = [resolve(one, partial(choose_trained, family)) for one in given]
        tell_unused(family, controls, weight_sources)
        for weight_source in weight_sources:
            tell_other_trained(family, weight_source)
        return _apply_trained(family, base, dict(enumerate(weight_sources)), increments)
    beside = {
        number: directory
        for number, weight_source in enumerate(controls)
        if (directory := trained_beside(family, weight_source))
    }
    if beside:
        return _apply_trained(family, base, beside, increments or family.increments)
    if increments:
        raise InputError(
            "`unet_increments` says how to apply `unet_weights`, which are not given; give both",
            argument="unet_weights",
        )
    return []


def _apply_trained(
    family: Family, base: Base, weight_sources: Mapping[int, WeightSource], increments: bool
) -> list[Source]:
    """Apply the trained tensors in ``weight_sources``, by the number of the control or of the argument that
    they came with.

    A file that comes twice is applied once: the same control may be given for two images.
    """
    part = base.parts[family.denoiser]
    given: list[trained.FineTunedWeights] = []
    sources: list[Source] = []
    for number, weight_source in weight_sources.items():
        role = _numbered(f"{family.denoiser} {'increments' if increments else 'values'}", number)
        found, files = read_weights(
            weight_source, weight_source.path, (family.denoiser, *trained.STEMS), role
        )
        if {file.sha256 for file in files} <= {source.sha256 for source in sources}:
            log.info("%s: the %s were applied already", weight_source.name, role)
            continue
        for file in weight_files(weight_source.path, (family.denoiser, *trained.STEMS), role):
            base.scheduler.check_marked(family, marked_settings(family, file, found), file.name)
        weights = {name: tensor for name, tensor in found.items() if not is_marker(name)}
        given.append(trained.FineTunedWeights(weight_source.name, weights))
        sources += files
    layout = original_layout(family, family.denoiser, part.config)
    part.tensors = trained.apply_trained(part.tensors, given, layout, increments)
    return sources


def _assemble(
    family: Family,
    base: Base,
    controls: Sequence[ControlWeights],
    sources: list[Source],
    clip_skip: int,
    random: bool,
    adapters: Adapters | None,
) -> Checkpoint:
    known = family.known_networks
    if adapters:
        base.parts[IMAGE_ENCODER] = adapters.encoder
        sources = sources + adapters.sources
    networks = {
        name: NetworkWeights(known[name].of(part.config), part.config, LazyTensors(part.tensors, name))
        for name, part in base.parts.items()
    }
    for control, names in zip(controls, numbered_controls(len(controls)), strict=True):
        name = names.network
        networks[name] = NetworkWeights(None, asdict(control.spec), LazyTensors(control.tensors, name))
    return Checkpoint(
        family,
        controls[0].variant,
        networks,
        base.tokenizers,
        base.scheduler.config,
        base.options,
        base.sources + sources,
        random,
        base.scheduler.settings,
        base.directory,
        base.added_tokens,
        clip_skip,
        adapters.weights if adapters else (),
    )


def _refuse_files(given: Sequence[str]) -> None:
    if given:
        names = ", ".join(f"`{name}`" for name in given)
        raise InputError(
            f"random weights replace every file: remove {names} or `random_seed`",
            argument="random_seed",
        )


def _random_checkpoint(
    family: Family,
    variant: str,
    seed: int,
    clip_skip: int,
    leave_out: Collection[str],
    scheduler: Mapping[str, Any],
    kinds: Sequence[Given],
) -> Checkpoint:
    chosen = next(iter(family.variants.values())) if variant == "auto" else family.variant(variant)
    shapes = shapes_of(control_weights.empty_control(chosen.control))
    control = ControlWeights(
        "random weights", chosen, chosen.control, random_tensors(shapes, "control", seed)
    )
    sources = [Source("random", f"seed {seed}")]
    base = random_base(family, seed, leave_out, scheduler)
    check_clip_skip(family, base, clip_skip)
    adapters = random_adapters(family, base.parts[family.denoiser].config, kinds, seed)
    return _assemble(family, base, [control], sources, clip_skip, random=True, adapters=adapters)
