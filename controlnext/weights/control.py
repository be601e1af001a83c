"""The control module's weights: variant and widths are read from the tensors, then every tensor is
checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from controlnext.errors import CheckpointError, first_line
from controlnext.families import ControlSpec, Family, Variant
from controlnext.models.control_module import meta_control
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import match, shapes_of
from controlnext.weights.variants import Architecture, arguments, candidates, narrow, read_spec, title

PUBLISHED = ("controlnet", "controlnext")
STEMS = (*PUBLISHED, "diffusion_pytorch_model", "model")
"""File names of published control modules; PUBLISHED are used for nothing else."""


@dataclass(frozen=True)
class ControlWeights:
    """One control module: the name of its source, its variant, its own widths, and its tensors by name."""

    name: str
    variant: Variant
    spec: ControlSpec
    tensors: dict[str, LazyTensor]


def empty_control(spec: ControlSpec) -> nn.Module:
    """Return the control module with parameters on the meta device, in eval mode.

    Raises :class:`CheckpointError` for widths that no module can have.
    """
    try:
        return meta_control(spec).requires_grad_(False)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"no control module has these widths: {first_line(error)}") from error


def match_control(found: Mapping[str, LazyTensor], family: Family, variant: str, name: str) -> ControlWeights:
    """Check every tensor's name and shape, and return the control module in ``found``.

    ``variant`` "auto" selects the variant of the family that has the tensors' architecture. Raises
    :class:`CheckpointError` that describes the tensors if there is none.
    """
    wanted = list(family.variants.values()) if variant == "auto" else [family.variant(variant)]
    read = read_spec(found)
    if read is None:
        raise CheckpointError(
            f"{name} is not a control module of {family.name}: it looks like {looks_like(found)}"
        )
    for candidate in wanted:
        if Architecture.of(candidate.control) == Architecture.of(read):
            spec = narrow(candidate.control, read)
            tensors = match(
                found, shapes_of(empty_control(spec)), f"{name} as {arguments(family, candidate)}"
            )
            return ControlWeights(name, candidate, spec, tensors)
    raise CheckpointError(_mismatch(read, family, wanted, name))


def _mismatch(read: ControlSpec, family: Family, wanted: Sequence[Variant], name: str) -> str:
    asked = arguments(family, wanted[0]) if len(wanted) == 1 else f"`family` {family.name}"
    found = candidates(read)
    own = [(f, v) for f, v in found if f == family]
    if own:
        return f"{name} does not fit {asked}: it is {title(own)}; give that, or remove `variant`"
    if found:
        return f"{name} does not fit {asked}: it is {title(found)}; give that, or weights of {family.name}"
    expected = "; or ".join(str(Architecture.of(variant.control)) for variant in wanted)
    return (
        f"{name} does not fit {asked}: it is a control module of an unknown variant with"
        f" {Architecture.of(read)}; expected {expected}"
    )


def check_one_variant(controls: Sequence[ControlWeights]) -> Variant:
    """Return the variant that all ``controls`` have. Raises :class:`CheckpointError` naming each one's if
    they differ."""
    variant = controls[0].variant
    if any(control.variant != variant for control in controls):
        each = ", ".join(f"{control.name} is of variant {control.variant.name}" for control in controls)
        raise CheckpointError(f"{each}; give several controls of one variant only")
    return variant


def check_width(control: ControlWeights, family: Family, config: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` if the control's number of channels differs from that of the denoiser
    with configuration ``config`` at the injection point."""
    width, given = control.variant.injection.width(config), control.spec.out_channels
    if given == width:
        return
    found = candidates(control.spec)
    other = not any(f == family for f, _ in found)
    hint = f"it looks like {title(found)}; " if other else ""
    raise CheckpointError(
        f"{control.name} gives {given} channels, the base's {family.denoiser} has {width} where they are"
        f" injected; {hint}give weights that were trained for this architecture"
    )
