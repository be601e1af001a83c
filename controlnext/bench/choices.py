"""Choices of a benchmark: the measurements, and ways of multiplying less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlnext.bench.messages import Target
from controlnext.bundle.files import MANIFEST, sha256
from controlnext.bundle.manifest import Manifest
from controlnext.families.schema import PREVIEW_DECODER

STEPS = ("step", "batch", "size", "frames")
IMAGES = ("image", "first", "memory")
DECODES = ("decode",)
MEASURES = (*STEPS, *IMAGES, *DECODES, "load")
DEFAULT_MEASURES = ("step", "image", "first", "load", "memory")

WITHOUT_CONTROL = "without control"
OFFLOADED = "offloaded"
PREVIEWS = "preview decoder"

COPIES = 1.2
"""Memory of an engine per byte of its graph's file: some weights are held in a packed layout as well."""

Changes = Mapping[str, Any]
"""Fields of :class:`~controlnext.bench.messages.Work` that a target has values of its own of."""
CACHE, TINY = "cache_interval", "tiny"
FEW_STEPS: Changes = MappingProxyType({"sampler": "lcm", "guidance": 1.0})
"""How distilled models are sampled, besides the number of steps."""
_TITLES: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "steps": lambda steps: f"{steps} LCM steps",
        CACHE: lambda interval: f"cache {interval}",
        "guidance_end": lambda end: f"guidance to {end:g}",
        TINY: lambda _: "tiny decoder",
    }
)
"""How the name of a target tells its changes."""


@dataclass(frozen=True)
class Surroundings:
    """The circumstances that targets are made for.

    ``made``: directory of exports that targets need. ``device``, and whether it is a ``gpu``. ``optimum``,
    ``sdcpp``: Python interpreters with optimum's exporter and with stable-diffusion.cpp; None if there is
    none. ``less``: the changes that images are measured with too.
    """

    made: Path
    device: str = "auto"
    gpu: bool = False
    optimum: str | None = None
    sdcpp: str | None = None
    less: Sequence[Changes] = ()


def ways_of_less(
    cache_interval: int | None, guidance_end: float | None, tiny: bool, few_steps: int | None
) -> list[Changes]:
    """Return the changes to measure: one more of the first three each time, then ``few_steps`` by
    themselves and with the tiny decoder."""
    given = {CACHE: cache_interval, "guidance_end": guidance_end, TINY: tiny or None}
    asked = {name: value for name, value in given.items() if value is not None}
    less: list[Changes] = [dict(list(asked.items())[: count + 1]) for count in range(len(asked))]
    if few_steps is not None:
        few = {"steps": few_steps, **FEW_STEPS}
        less += [few, {**few, TINY: True}] if tiny else [few]
    return less


def changed(target: Target, manifest: Manifest, less: Sequence[Changes]) -> Iterator[Target]:
    """Yield ``target`` with each of the changes ``less`` that the bundle allows, for images."""
    for changes in less:
        if TINY not in changes or PREVIEW_DECODER in manifest.graphs:
            name = ", ".join([target.name, *titles(changes)])
            yield replace(target, name=name, measures=IMAGES, changes=changes)


def titles(changes: Changes) -> list[str]:
    """Return how the name of a target tells its changes."""
    return [_TITLES[name](value) for name, value in changes.items() if name in _TITLES]


def own_directory(path: Path, made: Path) -> Path:
    """Return the directory of exports from the bundle ``path``; a new manifest gets a new directory."""
    return made / "made" / f"{path.name}-{sha256(path / MANIFEST)[:8]}"


def uncontrolled_bundle(path: Path, made: Path) -> Path:
    """Return the bundle of the same denoiser without its control."""
    return own_directory(path, made) / "without-control"
