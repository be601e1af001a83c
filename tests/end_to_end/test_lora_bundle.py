"""A bundle that was exported with a LoRA and trained UNet tensors makes the images that diffusers makes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from controlnext.bundle.files import sha256
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.cli import main
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.weights import load_checkpoint
from support.lora_files import as_kohya, low_rank, sgm_of
from support.recipe import drawing, fill, rand
from support.weights_models import SDXL, add_text_encoders

pytestmark = pytest.mark.export

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
UNET = {
    "sample_size": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 48,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 72,
}
ALPHA = 3.0
SCALE = 0.6


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL with a UNet of two blocks and with text encoders; increments of some of the UNet's
    tensors; a LoRA of every layer that LoRAs are trained for, named as sd-scripts names them."""
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(tiny_checkpoint("sdxl"), folder, dirs_exist_ok=True)
    add_text_encoders(folder / "base")
    fill(diffusers.UNet2DConditionModel(**UNET), 7).save_pretrained(folder / "base" / "unet")
    # what both encoders give has to be as wide as what this UNet takes
    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, projection_dim=24
    )
    widened = fill(transformers.CLIPTextModelWithProjection(config), 1)
    widened.save_pretrained(folder / "base" / "text_encoder_2")
    networks = load_checkpoint(SDXL, base=folder / "base", control=folder / "control.safetensors").networks
    modules = {name: networks[name].module() for name in NETWORKS}
    save_file(as_kohya(low_rank(modules), ALPHA, sgm_of(modules)), folder / "style.safetensors")
    unet = modules["unet"].state_dict()
    trained = [name for name in unet if "attn2.to_out" in name or "conv_in" in name]
    increments = {name: 0.05 * torch.from_numpy(rand(n, *unet[name].shape)) for n, name in enumerate(trained)}
    save_file(increments, folder / "increments.safetensors")
    return folder


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    """As a user exports it; the command compares it with PyTorch before it is kept."""
    command = ["controlnext", "export", "--model=sdxl", "--precision=fp32", f"--output={files / 'bundle'}"]
    command += [f"--base={files / 'base'}", f"--control={files / 'control.safetensors'}"]
    command += [f"--unet-weights={files / 'increments.safetensors'}", "--unet-increments"]
    command += [f"--lora={files / 'style.safetensors'}:{SCALE}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return files / "bundle"


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "negative_prompt": "grey",
    "control_image": drawing(4, 96, 64),
    "control_scale": 0.8,
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "height": 64,
    "width": 96,
    "seed": 3,
}


def stock_images(files: Path, increments: bool = True, lora: Sequence[str] = NETWORKS) -> np.ndarray:
    """Run the stock pipeline on the base after adding the increments to its UNet, and fusing the LoRA
    into the networks that ``lora`` names."""
    base, control = files / "base", files / "control.safetensors"
    reference = reference_pipeline(load_checkpoint(SDXL, base=base, control=control))
    pipeline = reference.pipeline
    if increments:
        state = pipeline.unet.state_dict()
        for name, increment in load_file(files / "increments.safetensors").items():
            state[name] += increment
    if lora:
        pipeline.load_lora_weights(str(files / "style.safetensors"))
        pipeline.fuse_lora(components=list(lora), lora_scale=SCALE)
        pipeline.unload_lora_weights()
    return reference(**ARGUMENTS).images


def test_the_image_equals_the_stock_pipelines(bundle: Path, files: Path) -> None:
    """load_lora_weights and fuse_lora on top of the increments, text encoders and UNet."""
    with Pipeline.load(bundle, cache=False) as pipe:
        got = pipe(**ARGUMENTS, output_type="np").images
    wanted = stock_images(files)
    assert np.abs(got - wanted).max() < 1e-4
    for left_out in ({"lora": ()}, {"lora": ("unet",)}, {"increments": False}):
        other = stock_images(files, **left_out)
        assert np.abs(got - other).max() > 0.05, left_out


def test_the_manifest_names_the_lora_and_its_scale(manifest: Manifest, files: Path) -> None:
    sources = {source.role: source for source in manifest.sources}
    lora, increments = sources["lora"], sources["unet increments"]
    assert (lora.name, lora.detail) == ("style.safetensors", "scale 0.6")
    assert lora.sha256 == sha256(files / "style.safetensors")
    assert (increments.name, increments.sha256) == (
        "increments.safetensors",
        sha256(files / "increments.safetensors"),
    )


def test_parity_was_measured_with_the_lora(manifest: Manifest) -> None:
    assert {row.name.partition(":")[0] for row in manifest.parity} >= {
        "text_encoder",
        "text_encoder_2",
        "unet",
    }
    assert all(row.passed for row in manifest.parity)
