"""Make the bundle that is kept here and the run recorded beside it, by the release that is installed.

    python make.py KEYS FOLDER

``KEYS``: tests/golden/keys/sd15.json. ``FOLDER`` gets ``bundle/`` and ``recorded.safetensors``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

UNET = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (4, 4, 4, 4),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_size": 64,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
NARROW = {64: 4, 128: 8, 256: 16, 320: 8}
"""Widths of the published control module, and what they are here."""


def numbers(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """float32 numbers: matrices and kernels of fan-in f from N(0, 1/f), gains about 1, biases small."""
    random = np.random.RandomState(seed)
    values = {}
    for name, shape in sorted(shapes.items()):
        values[name] = random.standard_normal(shape)
        if len(shape) > 1:
            values[name] /= np.sqrt(np.prod(shape[1:]))
        else:
            values[name] = values[name] / 10 + name.endswith("weight")
    return {name: value.astype(np.float32) for name, value in values.items()}


def fill(module: nn.Module, seed: int) -> nn.Module:
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: torch.from_numpy(x) for name, x in numbers(shapes, seed).items()})
    return module.eval()


def write_checkpoint(keys: Path, folder: Path) -> None:
    """The base (diffusers layout, no text encoder) and ``control.safetensors``."""
    published = json.loads(keys.read_text())
    control = {name: tuple(NARROW.get(size, size) for size in shape) for name, shape in published.items()}
    save_file(numbers(control, 2), folder / "control.safetensors")
    diffusers.StableDiffusionPipeline(
        unet=fill(diffusers.UNet2DConditionModel(**UNET), 1),
        vae=fill(diffusers.AutoencoderKL(**VAE), 3),
        scheduler=diffusers.UniPCMultistepScheduler(**SCHEDULER),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "base")


def export(checkpoint: Path, bundle: Path) -> None:
    command = [sys.executable, "-m", "controlnext", "export", "--model", "sd15", "--precision", "int8"]
    command += ["--base", checkpoint / "base", "--control", checkpoint / "control.safetensors"]
    subprocess.run([*map(str, command), "--output", str(bundle), "--no-verify"], check=True)


def record(bundle: Path, target: Path) -> None:
    """What a run of the bundle takes, and the latents that it gives."""
    from controlnext.runtime import Pipeline

    random = np.random.RandomState(4)
    embeds = random.standard_normal((2, 1, 5, UNET["cross_attention_dim"])).astype(np.float32)
    given = {
        "prompt_embeds": embeds[0],
        "negative_prompt_embeds": embeds[1],
        "control_image": random.randint(0, 256, (64, 64, 3)).astype(np.uint8),
        "latents": random.standard_normal((1, 4, 8, 8)).astype(np.float32),
    }
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "control_scale": 1.0}
    with Pipeline.load(bundle, device="cpu", cache=False) as pipeline:
        out = pipeline(**given, **options, output_type="latent")
    save_file({**given, "output": out.latents}, target, metadata={"options": json.dumps(options)})


def main(keys: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        write_checkpoint(keys, Path(made))
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        export(Path(made), folder / "bundle")
    record(folder / "bundle", folder / "recorded.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
