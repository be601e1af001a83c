"""Kinds of denoising steps, for engines that run a denoiser with the step cache."""

from __future__ import annotations

from enum import Enum, auto
from types import MappingProxyType

from controlnext.types import Feed


class StepKind(Enum):
    """Kinds of a denoiser's run.

    ``PLAIN``: the whole graph. ``FULL``: the same, and the features for shallow steps. ``SHALLOW``: the
    shallow part alone, which takes these features as inputs.
    """

    PLAIN = auto()
    FULL = auto()
    SHALLOW = auto()


NO_FEATURES: Feed = MappingProxyType({})
"""The features that a step which is not shallow takes."""
