"""Trained UNet tensors beside a control module, and the check of what was loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from controlnext.weights import Checkpoint, load_checkpoint
from support.weights_models import SDXL

NAMES = [
    "down_blocks.0.resnets.0.conv1.weight",
    "mid_block.resnets.1.norm2.weight",
    "up_blocks.1.resnets.0.conv_shortcut.bias",
    "conv_in.weight",
]


def load(folder: Path, *controls: str, **options: object) -> Checkpoint:
    """Load the tiny SDXL in ``folder`` with its control, or those of these names."""
    control = [folder / name for name in controls or ["control.safetensors"]]
    return load_checkpoint(SDXL, base=folder / "base", control=control, **options)


def publish(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> str:
    """Make a directory as the family is published: controlnet.safetensors and unet.safetensors."""
    published = folder / name
    published.mkdir()
    shutil.copy(folder / "control.safetensors", published / "controlnet.safetensors")
    save_file(tensors, published / "unet.safetensors")
    return name


def roles(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return role and name of every source but the base."""
    return [(source.role, source.name) for source in checkpoint.sources if source.name != "base"]


def check(checkpoint: Checkpoint, unet: dict[str, torch.Tensor], changed: dict[str, torch.Tensor]) -> None:
    """Check that the UNet has the ``changed`` tensors, and the base's everywhere else."""
    tensors = checkpoint.networks["unet"].tensors
    assert list(tensors) == list(checkpoint.networks["unet"].module().state_dict())
    assert all(torch.equal(tensors[name], changed.get(name, tensor)) for name, tensor in unet.items())
