"""The PyTorch reference: the stock diffusers pipeline, with its controls added by forward hooks.

What "the same outputs as PyTorch" means everywhere in this project is defined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from controlnext.reference.image import ImageReference, ReferenceOutput
from controlnext.reference.stock import SCHEDULERS
from controlnext.reference.video import VideoReference, VideoReferenceOutput
from controlnext.weights import Checkpoint

__all__ = [
    "REFERENCES",
    "SCHEDULERS",
    "ImageReference",
    "ReferenceOutput",
    "VideoReference",
    "VideoReferenceOutput",
    "reference_pipeline",
]

REFERENCES: Mapping[str, type[ImageReference | VideoReference]] = MappingProxyType(
    {"image": ImageReference, "video": VideoReference}
)
"""By a family's ``task``."""


def reference_pipeline(checkpoint: Checkpoint) -> ImageReference | VideoReference:
    """Return the reference for a checkpoint's family."""
    return REFERENCES[checkpoint.family.task].of(checkpoint)
