"""Clip skip: prompts are embedded without the last layers of the text encoders."""

from __future__ import annotations

from controlnext.errors import InputError
from controlnext.families import Family
from controlnext.weights.base import Base


def check_clip_skip(family: Family, base: Base, layers: int) -> None:
    """Raise :class:`InputError` for a number of ``layers`` to skip that a text encoder of ``base`` does not
    have, and if there is no text encoder; 0 is right for all."""
    depths = {
        name: int(base.parts[name].config["num_hidden_layers"])
        for name in family.prompt_encoders
        if name in base.parts
    }
    most = min(depths.values(), default=1) - 1
    if isinstance(layers, int) and not isinstance(layers, bool) and (layers == 0 or 0 < layers <= most):
        return
    if not depths:
        reason = f"{family.name} has no text encoder, or this base comes without it; remove `clip_skip`"
    else:
        have = ", ".join(f"{name} {depth}" for name, depth in depths.items())
        reason = f"it must be an integer from 0 (none) to {most} (layers of {have})"
    raise InputError(f"clip_skip is {layers!r}: {reason}", argument="clip_skip")
