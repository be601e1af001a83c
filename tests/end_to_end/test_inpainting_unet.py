"""UNets that were trained to inpaint export as a base, and equal diffusers' inpainting pipelines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from controlnext.bundle.reader import read_manifest
from controlnext.evaluation.parity import measure
from controlnext.families import get_family
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.weights.base import _with_channels
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.shipped import shipped_config
from support.exports import export_tiny, load_tiny, once
from support.recipe import drawing, fill, rand
from support.roomy import UNETS
from support.start_images import mask, photo
from support.two_controls import difference

pytestmark = pytest.mark.export

LIMIT = 1e-4
WIDTHS = {"sd15": (16, None), "sdxl": (48, 24)}
"""Widths of the embeddings, and of the pooled ones."""

GROUPS = 1
"""Groups of channels that the VAE normalizes, all together. Where nothing of an image is kept, the VAE gets a
grey one, and the deviation of a group is that of a few biases: with the tiny models' groups of two channels,
pixels that are off by 1e-6 make latents that are off by 3e-3 (in float64), with one group by 6e-6."""


@pytest.fixture(scope="module")
def inpainting(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return the directory of a tiny model whose UNet takes 9 channels."""

    def make(variant: str, directory: Path) -> None:
        shutil.copytree(tiny_checkpoint(variant), directory)
        unet = diffusers.UNet2DConditionModel(**UNETS[variant], in_channels=9)
        fill(unet, 21).save_pretrained(directory / "base" / "unet")
        config = diffusers.AutoencoderKL.load_config(directory / "base" / "vae")
        vae = diffusers.AutoencoderKL.from_config({**config, "norm_num_groups": GROUPS})
        fill(vae, 9).save_pretrained(directory / "base" / "vae")

    return lambda variant: once(shared_folder / f"inpainting-{variant}", lambda path: make(variant, path))


@pytest.fixture(scope="module")
def bundle(shared_folder: Path, inpainting: Callable[[str], Path]) -> Callable[[str], Path]:
    def of(variant: str) -> Path:
        def make(path: Path) -> None:
            export_tiny(variant, inpainting(variant), "fp32", path)

        return once(shared_folder / f"inpainting-{variant}-fp32", make)

    return of


def _arguments(variant: str, **changes: Any) -> dict[str, Any]:
    width, pooled = WIDTHS[variant]
    given = {"prompt_embeds": rand(1, 1, 77, width), "negative_prompt_embeds": rand(2, 1, 77, width)}
    if pooled is not None:
        given["pooled_prompt_embeds"] = rand(5, 1, pooled)
        given["negative_pooled_prompt_embeds"] = rand(6, 1, pooled)
    usual = {"height": 64, "width": 96, "guidance_scale": 4.0, "num_inference_steps": 3, "seed": 3}
    return {**given, **usual, "control_image": drawing(4, 96, 64), "control_scale": 0.7, **changes}


@pytest.mark.parametrize("variant", WIDTHS)
def test_runs_equal_diffusers(
    bundle: Callable[[str], Path], inpainting: Callable[[str], Path], variant: str
) -> None:
    """With a mask; from an image and from noise, which diffusers makes with a white mask."""
    reference = reference_pipeline(load_tiny(variant, inpainting(variant)))
    start = {"image": photo(7, 101, 67), "mask_image": mask(101, 67)}
    with Pipeline.load(bundle(variant), cache=False) as pipe:
        made = []
        for changes in (
            {**start, "strength": 0.7},
            {**start, "strength": 1.0, "guidance_scale": 1.0, "sampler": "euler_a"},
            {**start, "padding_mask_crop": 8, "guidance_end": 0.4},
            {"image": start["image"], "strength": 0.7, "num_images_per_prompt": 2},
            {},
            {"upscale": 1.5, "strength": 0.7, "cache_interval": 2},
        ):
            arguments = _arguments(variant, **changes)
            wanted = reference(**arguments).latents
            got = pipe(**arguments).latents
            assert difference(got, wanted) < LIMIT, (changes.keys(), difference(got, wanted))
            made.append(got)
        assert (
            difference(made[0], pipe(**_arguments(variant, strength=0.7, image=start["image"])).latents)
            > 20 * LIMIT
        )


def test_an_export_is_compared_with_pytorch(
    bundle: Callable[[str], Path], inpainting: Callable[[str], Path]
) -> None:
    rows = measure(bundle("sd15"), load_tiny("sd15", inpainting("sd15")), lambda _stage, _done: None)
    assert all(row.passed for row in rows), rows
    assert any("from an image at strength 0.5" in row.name for row in rows)
    inputs = [tensor.name for tensor in read_manifest(bundle("sd15")).graphs["unet"].inputs]
    assert inputs[:5] == ["sample", "timestep", "encoder_hidden_states", "mask", "masked_image_latents"]


@pytest.mark.parametrize("channels", [4, 9])
def test_a_single_file_tells_its_channels(channels: int) -> None:
    family = get_family("sd15")
    first = LazyTensor.from_tensor(torch.zeros(320, channels, 3, 3))
    found = {"model.diffusion_model.input_blocks.0.0.weight": first}
    config = shipped_config(family, family.networks["unet"])
    assert _with_channels(family, "unet", config, found) == {**config, "in_channels": channels}
