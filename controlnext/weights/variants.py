"""Detection of a control module's variant from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from controlnext import families as registry
from controlnext.families import ControlSpec, Family, Variant
from controlnext.weights.lazy import LazyTensor


class Architecture(NamedTuple):
    """The features that distinguish control modules, whatever their widths."""

    embedding: int
    stages: int
    norms: bool
    learned_scale: bool

    @classmethod
    def of(cls, spec: ControlSpec) -> Architecture:
        """Return the architecture of a control module with this ``spec``."""
        return cls(len(spec.embedding), len(spec.stages), spec.mid_groups > 0, spec.learned_scale)

    def __str__(self) -> str:
        middle, scale = "" if self.norms else "no ", "a" if self.learned_scale else "no"
        return (
            f"{self.embedding} embedding convolutions, {self.stages} stages, {middle}norms in the middle and"
            f" {scale} learned scale"
        )


def read_spec(found: Mapping[str, LazyTensor]) -> ControlSpec | None:
    """Read a control module's widths from its tensors; None if they are not a control module's.

    Group counts, padding and pooling cannot be read; ``out_channels`` is 0 if the last convolution is
    missing.
    """
    if not any(re.fullmatch(r"down_sample\.\d+\.conv\.weight", name) for name in found):
        return None
    last, time = _shape(found, "mid_convs.1.weight", 4), _shape(found, "time_embedding.linear_1.weight", 2)
    spec = ControlSpec(
        out_channels=last[0] if last else 0,
        embedding=_widths(found, r"embedding\.(\d+)\.weight", 4),
        stages=_widths(found, r"down_res\.(\d+)\.conv1\.weight", 4),
        mid_groups=len(_widths(found, r"mid_convs\.0\.(\d+)\.weight", 1)),
        learned_scale="scale" in found,
    )
    return replace(spec, time_channels=(time[1], time[0])) if time else spec


def narrow(published: ControlSpec, read: ControlSpec) -> ControlSpec:
    """Return the published spec with the widths of a checkpoint of the same architecture."""
    return replace(
        published,
        out_channels=read.out_channels or published.out_channels,
        embedding=read.embedding,
        stages=read.stages,
        time_channels=read.time_channels,
    )


def _shape(found: Mapping[str, LazyTensor], name: str, axes: int) -> tuple[int, ...] | None:
    shape = found[name].shape if name in found else ()
    return shape if len(shape) == axes else None


def _widths(found: Mapping[str, LazyTensor], pattern: str, axes: int) -> tuple[int, ...]:
    """Return the first dimension of the tensors with ``axes`` dimensions whose names match, ordered by the
    number in the name."""
    widths = {
        int(match[1]): tensor.shape[0]
        for name, tensor in found.items()
        if len(tensor.shape) == axes and (match := re.fullmatch(pattern, name))
    }
    return tuple(width for _, width in sorted(widths.items()))


def candidates(read: ControlSpec) -> list[tuple[Family, Variant]]:
    """Return the variants of all families that fit a module: those with its output width, or all of its
    architecture if none has it."""
    alike = [
        (family, variant)
        for family in registry.FAMILIES.values()
        for variant in family.variants.values()
        if Architecture.of(variant.control) == Architecture.of(read)
    ]
    return [(f, v) for f, v in alike if v.control.out_channels == read.out_channels] or alike


def title(variants: Iterable[tuple[Family, Variant]]) -> str:
    """Return ``"the control module of `family` sd15 `variant` mid"``, or several that look the same."""
    names = [arguments(family, variant) for family, variant in variants]
    if len(names) == 1:
        return f"the control module of {names[0]}"
    return f"the control module of {', '.join(names[:-1])} or {names[-1]}, which share names and shapes"


def arguments(family: Family, variant: Variant) -> str:
    """Return the arguments that select a variant: ``"`family` sd15 `variant` down"``."""
    return f"`family` {family.name}" + (f" `variant` {variant.name}" if len(family.variants) > 1 else "")
