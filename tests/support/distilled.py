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
    """Write the tiny model in ``tiny`` to ``directory``; its denoiser has its first and last block alone."""
    shutil.copytree(tiny, directory)
    unet = directory / "base" / "unet"
    config = json.loads((unet / "config.json").read_text())
    blocks = len(config["block_out_channels"])
    for key, value in config.items():
        if isinstance(value, list) and len(value) == blocks:
            config[key] = [value[0], value[-1]]
    made = diffusers.UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": WIDTH})
    fill(made, 21).save_pretrained(unet)
    return directory
