"""The control module's weights: its widths are read off the checkpoint, then every tensor is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from controlnext.control import meta_control
from controlnext.errors import CheckpointError
from controlnext.registry import ControlSpec, Family, Variant
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor, first_line
from controlnext.weights.networks import Shape, match, shapes_of

STEMS = ("controlnet", "controlnext", "diffusion_pytorch_model", "model")
"""Names under which control modules are published."""


def empty_control(spec: ControlSpec) -> nn.Module:
    """The control module with parameters on the meta device, in eval mode."""
    try:
        return meta_control(spec).requires_grad_(False)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"no control module has these widths: {first_line(error)}") from error


def match_control(
    found: Mapping[str, LazyTensor], family: Family, variant: str, what: str
) -> tuple[Variant, dict[str, LazyTensor]]:
    """The variant, its control spec narrowed to the checkpoint's widths, and the tensors by name.

    ``variant`` "auto" takes the first of the family's variants that the checkpoint fits. Raises
    :class:`CheckpointError` saying what the checkpoint looks like where it fits none.
    """
    candidates = list(family.variants.values()) if variant == "auto" else [family.variant(variant)]
    shapes = {name: tensor.shape for name, tensor in found.items()}
    reasons = []
    for candidate in candidates:
        try:
            spec = _narrow(candidate.control, shapes)
            tensors = match(found, shapes_of(empty_control(spec)), f"variant {candidate.name}")
            return replace(candidate, control=spec), tensors
        except CheckpointError as error:
            reasons.append(str(error))
    raise CheckpointError(
        f"{what} is no control module of {family.name}: it looks like {looks_like(found)};"
        f" {'; '.join(reasons)}"
    )


def _narrow(published: ControlSpec, shapes: Mapping[str, Shape]) -> ControlSpec:
    """The published spec with the widths of a checkpoint; group counts leave no trace and stay."""
    embedding = _widths(shapes, r"embedding\.(\d+)\.weight")
    stages = _widths(shapes, r"down_res\.(\d+)\.conv1\.weight")
    last, time = shapes.get("mid_convs.1.weight"), shapes.get("time_embedding.linear_1.weight")
    alike = len(embedding) == len(published.embedding) and len(stages) == len(published.stages)
    if not alike or not last or not time or len(time) != 2:
        raise CheckpointError(
            f"expected {len(published.embedding)} embedding convolutions and {len(published.stages)} stages,"
            f" found {len(embedding)} and {len(stages)}"
        )
    return replace(
        published, out_channels=last[0], embedding=embedding, stages=stages, time_channels=(time[1], time[0])
    )


def _widths(shapes: Mapping[str, Shape], pattern: str) -> tuple[int, ...]:
    """Output channels of the convolutions whose names match, ordered by the number in the name."""
    found = {
        int(match[1]): shape[0]
        for name, shape in shapes.items()
        if len(shape) == 4 and (match := re.fullmatch(pattern, name))
    }
    return tuple(width for _, width in sorted(found.items()))
