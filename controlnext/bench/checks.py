"""Checks of a benchmark's bundles and settings."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from controlnext.bench.choices import FEW_STEPS, IMAGES, MEASURES
from controlnext.bench.settings import Settings
from controlnext.bundle.format import read_json
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines.threads import check_threads
from controlnext.errors import InputError
from controlnext.families import Family, get_family
from controlnext.families.schema import PREVIEW_DECODER
from controlnext.runtime.samplers import make_sampler

_OF_MEASURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("steps", "sampler", "guidance"), IMAGES),
        **dict.fromkeys(("cache_interval", "guidance_end", "tiny_decoder", "few_steps"), IMAGES),
        "sdcpp": ("image",),
        "sizes": ("size",),
        "batches": ("batch",),
    }
)
"""The measurements, one of which a setting needs to have an effect."""


def check_bundles(bundles: Sequence[Path]) -> list[Manifest]:
    """Return the manifests of ``bundles``; raise :class:`InputError` unless they are of one model."""
    manifests = [read_manifest(path) for path in bundles]
    for path, manifest in zip(bundles, manifests, strict=True):
        first = manifests[0]
        if (manifest.family, manifest.variant) != (first.family, first.variant):
            raise InputError(
                f"{path} is {manifest.family} {manifest.variant}, {bundles[0]} is {first.family}"
                f" {first.variant}; give bundles of one model"
            )
    return manifests


def check_settings(settings: Settings, manifests: Sequence[Manifest]) -> None:
    """Raise :class:`InputError` for settings that the bundles do not support or that have no effect."""
    family = get_family(manifests[0].family)
    _check_measures(settings, family)
    for name, measures in _OF_MEASURES.items():
        given = getattr(settings, name)
        if given is not None and given is not False and not set(measures) & set(settings.measures):
            raise InputError(
                f"`{name}` was given, but has no effect on `measures` {', '.join(settings.measures)}; it is"
                f" for {', '.join(measures)}: measure one of these, or remove it",
                argument=name,
            )
    _check_less(settings, manifests)
    check_threads(settings.threads)
    for name in ("optimum", "sdcpp"):
        given = getattr(settings, name)
        if given is not None and shutil.which(given) is None:
            raise InputError(
                f"`{name}` is {given!r}, which is no program; give the path of the Python interpreter with"
                " its library",
                argument=name,
            )
    for name, sampler in (("sampler", settings.sampler), ("few_steps", FEW_STEPS["sampler"])):
        if getattr(settings, name) is not None and sampler not in family.samplers:
            raise InputError(
                f"`{name}`: {family.title} has no sampler {sampler!r}; accepted samplers:"
                f" {', '.join(family.samplers)}",
                argument=name,
            )


def check_few_steps(few_steps: int | None, bundles: Sequence[Path]) -> None:
    """Raise :class:`InputError` for a number of steps that the sampler of a bundle does not take."""
    for bundle in bundles if few_steps is not None else ():
        config = read_json(bundle / "scheduler" / "scheduler_config.json")
        try:
            make_sampler(FEW_STEPS["sampler"], config, few_steps)
        except InputError as error:
            told = str(error).replace("num_inference_steps", "few_steps")
            raise InputError(told, argument="few_steps") from error


def _check_measures(settings: Settings, family: Family) -> None:
    unknown = [name for name in settings.measures if name not in MEASURES]
    if unknown:
        raise InputError(
            f"unknown `measures` {unknown[0]!r}; accepted: {', '.join(MEASURES)}", argument="measures"
        )
    if "frames" in settings.measures and family.task != "video":
        raise InputError(
            f"`measures` frames is not supported by {family.title}, which makes images; remove it",
            argument="measures",
        )


def _check_less(settings: Settings, manifests: Sequence[Manifest]) -> None:
    if settings.guidance is not None and not math.isfinite(settings.guidance):
        raise InputError(
            f"`guidance` is {settings.guidance}; it must be a finite number", argument="guidance"
        )
    end = settings.guidance_end
    if end is not None and not 0 <= end < 1:
        raise InputError(
            f"`guidance_end` is {end:g}; it must be from 0 to below 1, which ends nothing",
            argument="guidance_end",
        )
    if end is not None and settings.guidance is not None and settings.guidance <= 1:
        raise InputError(
            f"`guidance_end` was given, but with `guidance` {settings.guidance:g} there is no guidance"
            " to end; remove one of the two",
            argument="guidance_end",
        )
    if settings.tiny_decoder and all(PREVIEW_DECODER not in one.graphs for one in manifests):
        raise InputError(
            "`tiny_decoder` was given, but no bundle has a tiny VAE; export with `preview_vae`, or remove it",
            argument="tiny_decoder",
        )
