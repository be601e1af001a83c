"""Detection of whether trained tensors are values that replace the base's, or increments to add to them.

A value is the base's number plus an increment: projected onto the base, values give about 1 and increments
about 0, however large training made the increments. Measured on the small trained model, whose increments are
0.2 to 0.8 times the size of its matrices: mean cosine 0.07 and projection 0.03 for the increments, 0.93 and
1.03 for the values. The limits lie between these and the effect of longer training on values: it turns them
away from the base's (the cosine falls) or makes them larger (the projection stays). Gains of norms are even
clearer: their values stay near 1, like the base's (projection 0.98), and their increments near 0 (-0.02).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from controlnext.weights.lazy import LazyTensor, is_finite

_TENSORS = 64
_NUMBERS = 2**15
_COSINE, _SHARE = 0.3, 0.2
"""Tensors with a larger cosine and projection are values: they point as the base does and are not much
smaller."""
_PROJECTION = 0.5
"""Tensors with a larger projection are values whatever the cosine. Increments of twice the base's size at a
cosine of 0.2, which few single matrices of the small trained model exceed, give 0.4, and those of the
opposite sign make values of 0.6."""
_CERTAIN = 4.0
"""Random tensors of n numbers have cosines of 1 / sqrt(n); limits must be larger by this factor."""


class NotFiniteError(ValueError):
    """A trained tensor ``name`` that holds NaN or infinity."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Likeness:
    """The similarity of trained tensors to the base's: means over ``count`` tensors.

    ``noise``: the cosine, and the projection at equal size, of random tensors.
    """

    count: int
    cosine: float
    projection: float
    noise: float

    @property
    def like_values(self) -> bool:
        """Whether the tensors are as close to the base's as values are."""
        near = self.cosine > max(_COSINE, _CERTAIN * self.noise) and self.projection > _SHARE
        return near or (self.telling and self.projection > _PROJECTION)

    @property
    def telling(self) -> bool:
        """Whether there are enough numbers for a decision."""
        return self.count > 0 and _CERTAIN * self.noise < _COSINE


def kind_of(
    base: Mapping[str, LazyTensor], found: Mapping[str, LazyTensor]
) -> tuple[Literal["values", "increments", "unknown"], str]:
    """Classify the tensors ``found``; return the result and the measurements behind it.

    Reads a sample: some rows of a number of matrices, and gains of norms. ``"unknown"`` if there is neither a
    matrix nor a gain, or too few numbers. Raises :class:`NotFiniteError`.
    """
    matrices = likeness(base, found, [name for name in found if len(base[name].shape) >= 2])
    gains = likeness(base, found, [name for name in found if _may_be_gain(name, base[name])], gains=True)
    measured = ", ".join(
        f"{one.count} {what}: cosine to the base's {one.cosine:.2f}, projection {one.projection:.2f}"
        for what, one in (("matrices", matrices), ("gains of norms", gains))
        if one.count
    )
    if matrices.like_values or gains.like_values:
        return "values", measured
    return ("increments" if matrices.telling or gains.telling else "unknown"), measured


def likeness(
    base: Mapping[str, LazyTensor],
    found: Mapping[str, LazyTensor],
    names: Sequence[str],
    gains: bool = False,
) -> Likeness:
    """Return the likeness of the tensors of these names, or of a random sample of them.

    With ``gains`` only tensors that are about 1 in the base count.
    """
    pairs = []
    # random, not evenly spaced: the types of layers alternate
    for name in random.Random(0).sample(names, min(len(names), _TENSORS)):
        ours, theirs = _sample(base[name].read()), _sample(found[name].read())
        if not is_finite(theirs):
            raise NotFiniteError(name)
        if ours.any() and not (gains and float(ours.mean()) < 0.9 * float(ours.norm()) / len(ours) ** 0.5):
            pairs.append((ours, theirs))
    if not pairs:
        return Likeness(0, 0.0, 0.0, 1.0)
    cosines = [
        float(ours @ theirs / (ours.norm() * theirs.norm()).clamp_min(1e-30)) for ours, theirs in pairs
    ]
    projections = [float(ours @ theirs / (ours @ ours)) for ours, theirs in pairs]
    noise = math.sqrt(sum(1 / len(ours) for ours, _ in pairs)) / len(pairs)
    return Likeness(len(pairs), sum(cosines) / len(pairs), sum(projections) / len(pairs), noise)


def _may_be_gain(name: str, tensor: LazyTensor) -> bool:
    return len(tensor.shape) == 1 and name.endswith("weight")


def _sample(tensor: Tensor) -> Tensor:
    """Return some rows of a tensor, evenly spaced, as a flat float32 tensor."""
    rows = max(1, _NUMBERS * len(tensor) // max(tensor.numel(), 1))
    return tensor[:: math.ceil(len(tensor) / rows) or 1].flatten().float()
