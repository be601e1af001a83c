"""Tiny models whose denoiser takes the guidance scale as an input, as those distilled to few steps do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers

from support.recipe import fill

WIDTH = 256
"""The width of the guidance embedding, that of the published LCM denoisers."""


def write_distilled(tiny: Path, directory: Path) -> Path:
    """Write the tiny model in ``tiny`` to ``directory``, with another denoiser."""
    shutil.copytree(tiny, directory)
    unet = directory / "base" / "unet"
    config = json.loads((unet / "config.json").read_text())
    fill(
        diffusers.UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": WIDTH}), 21
    ).save_pretrained(unet)
    return directory
