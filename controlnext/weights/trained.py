"""Application of the denoiser's tensors that were trained with a control module: new values, or
increments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from controlnext.errors import CheckpointError
from controlnext.lora_names import listing
from controlnext.weights.kinds import NotFiniteError, kind_of
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor, is_finite, not_finite
from controlnext.weights.original import Layout, from_original

STEMS = ("diffusion_pytorch_model", "model")
"""File names of published trained tensors, besides the denoiser's own."""

_SMALL = 2**15
"""Largest number of elements of a tensor that is read completely in the first check."""
_PREFIXES = ("model.diffusion_model.", "unet.", "transformer.")


@dataclass(frozen=True)
class FineTunedWeights:
    """Trained tensors by name, and the name of their source."""

    name: str
    tensors: Mapping[str, LazyTensor]


def apply_trained(
    base: Mapping[str, LazyTensor], given: Sequence[FineTunedWeights], layout: Layout, increments: bool
) -> dict[str, LazyTensor]:
    """Return ``base`` with the ``given`` tensors in place of its own, or added to them in order and in
    float32.

    Each may be a part of the denoiser and use diffusers' or the original names. Raises
    :class:`CheckpointError` for tensors that the denoiser does not have, for values given as increments or
    increments as values, and for two sources with values of the same tensor.
    """
    changed: dict[str, LazyTensor] = {}
    givers: dict[str, str] = {}
    for trained in given:
        named = _match(base, trained, layout)
        _check_small(named, trained.name)
        _check_kind(base, named, increments, trained.name)
        if not increments:
            _check_apart(givers, named, trained.name)
        for name, tensor in named.items():
            tensor = _checked(name, tensor, trained.name)
            changed[name] = _sum(changed.get(name, base[name]), tensor) if increments else tensor
            givers[name] = trained.name
    return {name: changed.get(name, tensor) for name, tensor in base.items()}


def _match(
    base: Mapping[str, LazyTensor], trained: FineTunedWeights, layout: Layout
) -> dict[str, LazyTensor]:
    named = _plain_names(trained.tensors)
    if not base.keys() & named.keys():
        named = from_original(named, layout, base)
    problems = {
        "unknown": [name for name in named if name not in base],
        "mis-shaped": [
            f"{name} {list(tensor.shape)} for {list(base[name].shape)}"
            for name, tensor in named.items()
            if name in base and tensor.shape != base[name].shape
        ],
    }
    if any(problems.values()) or not named:
        raise CheckpointError(
            f"{trained.name} does not fit the base's denoiser: it looks like {looks_like(trained.tensors)};"
            f" {listing(problems)}"
        )
    return named


def _plain_names(found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return dict(found)


def _check_small(found: Mapping[str, LazyTensor], what: str) -> None:
    """Read the small tensors to find NaN and infinity; of the large ones a sample is read anyway."""
    for name, tensor in found.items():
        if math.prod(tensor.shape) <= _SMALL:
            _checked(name, tensor, what).read()


def _checked(name: str, tensor: LazyTensor, what: str) -> LazyTensor:
    """Return the tensor; it raises :class:`CheckpointError` on access if it holds NaN or infinity. The check
    is made before a sum, which would not show whose they are."""

    def read() -> Tensor:
        value = tensor.read()
        if not is_finite(value):
            raise CheckpointError(not_finite(what, name))
        return value

    return LazyTensor(tensor.shape, read)


def _sum(base: LazyTensor, increment: LazyTensor) -> LazyTensor:
    return LazyTensor(base.shape, lambda: base.read().float() + increment.read().float())


def _check_apart(givers: Mapping[str, str], named: Mapping[str, LazyTensor], what: str) -> None:
    both = [name for name in named if name in givers]
    if both:
        raise CheckpointError(
            f"{givers[both[0]]} and {what} both hold values of {listing({'tensors': both})};"
            " values cannot be joined: give `unet_weights` for one of them, or their differences to the base"
            " with `unet_increments`",
            argument="unet_weights",
        )


def _check_kind(
    base: Mapping[str, LazyTensor], found: Mapping[str, LazyTensor], increments: bool, what: str
) -> None:
    """Raise :class:`CheckpointError` for values given as increments and for increments given as values.

    Parity cannot detect either: the reference has the same mistake.
    """
    try:
        kind, measured = kind_of(base, found)
    except NotFiniteError as error:
        raise CheckpointError(not_finite(what, error.name)) from error
    if increments and kind == "values":
        raise CheckpointError(
            f"{what} holds values, not increments: they are near the base's ({measured}); give it with"
            " `unet_weights` and without `unet_increments`",
            argument="unet_increments",
        )
    if not increments and kind == "increments":
        raise CheckpointError(
            f"{what} holds increments, not values: they are unlike the base's ({measured}); give"
            " `unet_increments`, or, if they are values, the base that they were trained on",
            argument="unet_increments",
        )
