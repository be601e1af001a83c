"""Fixtures that several tests of weights share: files of the tiny SDXL, and loading them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from controlnext.weights import Checkpoint, load_checkpoint
from support.trained_weights import NAMES
from support.weights_models import SDXL


@pytest.fixture
def control(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    """The tiny SDXL's control module, in a file of its own."""
    return Path(shutil.copy(tiny_checkpoint_dir / "control.safetensors", tmp_path))


@pytest.fixture
def load(tiny_checkpoint_dir: Path) -> Callable[..., Checkpoint]:
    """Load the tiny SDXL with another control."""

    def load_control(control: Path, **options: object) -> Checkpoint:
        return load_checkpoint(SDXL, base=tiny_checkpoint_dir / "base", control=control, **options)

    return load_control


@pytest.fixture
def folder(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny SDXL: ``base`` and ``control.safetensors``."""
    return Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "all"))


@pytest.fixture
def unet(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the tiny SDXL's UNet."""
    return load_file(folder / "base/unet/diffusion_pytorch_model.safetensors")


@pytest.fixture
def increments(unet: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Small increments for the UNet's tensors ``NAMES``."""
    generator = torch.Generator().manual_seed(0)
    return {name: 0.01 * torch.randn(unet[name].shape, generator=generator) for name in NAMES}
