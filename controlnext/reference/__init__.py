"""The PyTorch reference: the stock diffusers pipeline, with controls added by forward hooks.

It defines what "the same outputs as PyTorch" means in this project.
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
"""The reference class by a family's ``task``."""


def reference_pipeline(checkpoint: Checkpoint) -> ImageReference | VideoReference:
    """Return the reference pipeline of a checkpoint, in float32 on the CPU."""
    return REFERENCES[checkpoint.family.task].of(checkpoint)
