"""The PyTorch reference: the stock diffusers pipeline, its denoiser steered by forward hooks.

What "the same outputs as PyTorch" means everywhere in this project is defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from controlnext.reference.image import ImageReference, ReferenceOutput
from controlnext.reference.stock import SCHEDULERS
from controlnext.reference.video import VideoReference, VideoReferenceOutput
from controlnext.weights import Checkpoint

__all__ = [
    "SCHEDULERS",
    "ImageReference",
    "ReferenceOutput",
    "VideoReference",
    "VideoReferenceOutput",
    "reference_pipeline",
]

_TASKS: Mapping[str, Callable[..., ImageReference | VideoReference]] = MappingProxyType(
    {"image": ImageReference, "video": VideoReference}
)


def reference_pipeline(
    checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> ImageReference | VideoReference:
    """The reference for a checkpoint's family: in float32 on the CPU. What it computes elsewhere, or in
    another ``dtype``, is for measuring speed."""
    return _TASKS[checkpoint.family.task](checkpoint, device=device, dtype=dtype)
