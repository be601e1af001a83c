"""The runtime on exported tiny models against the recorded runs of the published pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.runtime import Pipeline
from support.recipe import LATENTS, PIXELS, drawing, rand, read_golden


def assert_recorded(
    latents: np.ndarray, images: np.ndarray, wanted: tuple[np.ndarray, np.ndarray], precision: str
) -> None:
    error = np.linalg.norm(latents - wanted[0]) / np.linalg.norm(wanted[0])
    assert error <= LATENTS[precision]
    assert images.shape == wanted[1].shape
    assert np.abs(images - wanted[1]).max() <= PIXELS[precision]


def image_arguments(variant: str, case: dict[str, Any]) -> dict[str, Any]:
    seed, batch, width, height = case["seed"], case["batch"], case["width"], case["height"]
    arguments = {
        "prompt_embeds": rand(seed, batch, 77, 48),
        "negative_prompt_embeds": rand(seed + 1, batch, 77, 48),
        "control_image": drawing(seed + 5, width, height),
        "control_scale": case["control_scale"],
        "num_inference_steps": case["steps"],
        "guidance_scale": case["guidance"],
        "sampler": case["scheduler"],
        "seed": case["generator_seed"],
        "latents": rand(seed + 4, batch, 4, height // 8, width // 8),
        "output_type": "np",
    }
    if variant == "sdxl":
        arguments["pooled_prompt_embeds"] = rand(seed + 2, batch, 24)
        arguments["negative_pooled_prompt_embeds"] = rand(seed + 3, batch, 24)
    return arguments


@pytest.mark.parametrize(
    ("variant", "precision"),
    # the variants of SD1.5 have all but the injection in common: float16 of one of them
    [("sd15", "fp32"), ("sd15", "fp16"), ("sd15-mid", "fp32"), ("sdxl", "fp32"), ("sdxl", "fp16")],
)
def test_images_equal_the_recorded_ones(tiny: Callable[..., Path], variant: str, precision: str) -> None:
    """Every sampler that was recorded, guided and not, at several sizes.

    A recorded run with another learned scale is the same as one with another scale asked for.
    """
    spec, vectors = read_golden(f"{variant}-pipeline")
    learned = read_golden(variant)[0]["cases"][0]["learned_scale"] or 1.0
    with Pipeline.load(tiny(variant, precision), cache=False) as pipeline:
        for case in spec["cases"]:
            arguments = image_arguments(variant, case)
            arguments["control_scale"] *= (case["learned_scale"] or 1.0) / learned
            out = pipeline(**arguments)
            name = case["name"]
            wanted = vectors[f"{name}.latents"], vectors[f"{name}.image"].transpose(0, 2, 3, 1)
            assert_recorded(out.latents, out.images, wanted, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clips_equal_the_recorded_ones(tiny: Callable[..., Path], precision: str) -> None:
    """One window, and one clip in three windows of which the last is shifted back."""
    spec, vectors = read_golden("svd-pipeline")
    with Pipeline.load(tiny("svd", precision), cache=False) as pipeline:
        for case in spec["cases"]:
            s, frames, width, height = case["seed"], case["frames"], case["width"], case["height"]
            out = pipeline(
                image=drawing(s, width, height),
                control_images=[drawing(s + 10 + number, width, height) for number in range(frames)],
                frames_per_batch=case["window"],
                overlap=case["overlap"],
                num_inference_steps=case["steps"],
                min_guidance_scale=case["guidance"],
                max_guidance_scale=case["guidance"],
                decode_chunk_size=case["decode_chunk"],
                seed=case["generator_seed"],
                latents=rand(s + 4, 1, frames, 4, height // 8, width // 8),
                output_type="np",
            )
            wanted = vectors[f"{case['name']}.latents"], vectors[f"{case['name']}.frames"]
            assert_recorded(out.latents, out.frames, wanted, precision)
