"""The registry: every family and variant as data, one file for each family.

A new family is a new entry here; no other file names a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from controlnext.errors import InputError
from controlnext.families.graph_spec import PER_STEP_INPUTS, CachedFeature, GraphSpec
from controlnext.families.schema import (
    ControlNet,
    ControlSpec,
    Family,
    Injection,
    LatentRgb,
    Network,
    Variant,
)
from controlnext.families.sd3 import SD3
from controlnext.families.sd15 import SD15
from controlnext.families.sdxl import SDXL
from controlnext.families.svd import SVD

__all__ = [
    "FAMILIES",
    "PER_STEP_INPUTS",
    "CachedFeature",
    "ControlNet",
    "ControlSpec",
    "Family",
    "GraphSpec",
    "Injection",
    "LatentRgb",
    "Network",
    "Variant",
    "get_family",
]

FAMILIES: Mapping[str, Family] = MappingProxyType({f.name: f for f in (SD15, SDXL, SD3, SVD)})


def get_family(name: str) -> Family:
    """Return the family of that name. Raises :class:`InputError` listing the accepted names."""
    if name not in FAMILIES:
        raise InputError(f"unknown model {name!r}; accepted: {', '.join(FAMILIES)}", argument="family")
    return FAMILIES[name]
