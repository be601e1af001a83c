"""Guidance that ends within a run equals diffusers' cut-off callback, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import callbacks

from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from support.exports import load_tiny
from support.recipe import drawing, rand
from support.two_controls import difference

pytestmark = pytest.mark.export

HEIGHT, WIDTH = 64, 96
LIMIT = 1e-4
"""Relative L2 of a run's latents; the parity of float32 exports allows twice that."""
CHANGE = 20 * LIMIT
CLIP_LIMIT, CLIP_CHANGE = 1.5e-5, 50 * 1.5e-5
"""The same of clips, in which noise is at first 700 times what is drawn."""

# diffusers' own classes by variant, and the widths of the embeddings, pooled ones too
CALLBACKS: dict[str, tuple[Any, int, int | None]] = {
    "sd15": (callbacks.SDCFGCutoffCallback, 48, None),
    "sdxl": (callbacks.SDXLCFGCutoffCallback, 48, 24),
    "sd3": (callbacks.SD3CFGCutoffCallback, 32, 40),
}


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def of(variant: str) -> Any:
        if variant not in made:
            made[variant] = reference_pipeline(load_tiny(variant, tiny_checkpoint(variant)))
        return made[variant]

    return of


def _arguments(variant: str, count: int = 1, **changes: Any) -> dict[str, Any]:
    _, width, pooled = CALLBACKS[variant]
    given = {"prompt_embeds": rand(1, count, 77, width), "negative_prompt_embeds": rand(2, count, 77, width)}
    if pooled is not None:
        given["pooled_prompt_embeds"] = rand(5, count, pooled)
        given["negative_pooled_prompt_embeds"] = rand(6, count, pooled)
    usual = {"height": HEIGHT, "width": WIDTH, "guidance_scale": 4.0, "num_inference_steps": 4, "seed": 3}
    return {**given, **usual, "control_image": drawing(4, WIDTH, HEIGHT), "control_scale": 0.7, **changes}


@pytest.mark.parametrize("variant", CALLBACKS)
@pytest.mark.parametrize(("steps", "end"), [(1, 0.5), (4, 0.0), (4, 0.5), (5, 0.7)])
def test_without_control_the_reference_is_diffusers_callback(
    reference: Callable[[str], Any], variant: str, steps: int, end: float
) -> None:
    """The class that diffusers ships, for a single image; bit for bit."""
    arguments = _arguments(variant, num_inference_steps=steps)
    got = reference(variant)(**{**arguments, "control_scale": 0}, guidance_end=end).latents
    tensors = {name: torch.from_numpy(array) for name, array in arguments.items() if "embeds" in name}
    pipeline = reference(variant).pipeline
    reference(variant).set_steps(None, steps)
    wanted = pipeline(
        **tensors,
        num_inference_steps=steps,
        guidance_scale=4.0,
        height=HEIGHT,
        width=WIDTH,
        generator=torch.Generator("cpu").manual_seed(3),
        callback_on_step_end=CALLBACKS[variant][0](cutoff_step_ratio=end),
        output_type="latent",
    ).images
    np.testing.assert_array_equal(got, wanted.numpy())


@pytest.mark.parametrize("variant", CALLBACKS)
def test_a_run_equals_pytorch(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """Two prompts, two images of each, an image and a scale for each prompt, a control that ends within the
    run before and after guidance does."""
    several = _arguments(
        variant,
        2,
        # diffusers' SD3 pipeline does not repeat pooled embeddings that it is given
        num_images_per_prompt=1 if variant == "sd3" else 2,
        control_image=[drawing(4, WIDTH, HEIGHT), drawing(5, WIDTH, HEIGHT)],
        control_scale=[0.7, 0.3],
    )
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        for changes in (
            {"control_start": 0.2, "guidance_end": 0.4},
            {"control_end": 0.5, "guidance_end": 0.6},
        ):
            wanted = reference(variant)(**several, **changes).latents
            assert difference(pipe(**several, **changes, output_type="latent").latents, wanted) < LIMIT
        for steps, end in ((3, 0.0), (3, 0.34), (2, 1.0)):
            one = _arguments(variant, num_inference_steps=steps, guidance_end=end)
            got, wanted = pipe(**one, output_type="latent").latents, reference(variant)(**one).latents
            assert difference(got, wanted) < LIMIT
            whole = pipe(**{**one, "guidance_end": 1.0}, output_type="latent").latents
            assert (difference(got, whole) > CHANGE) == (end < 1)


@pytest.mark.parametrize("variant", CALLBACKS)
def test_at_1_and_less_there_is_no_guidance(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """As in diffusers; nor is there an end of it."""
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        for guidance in (0.0, 0.5, 1.0):
            arguments = _arguments(variant, guidance_scale=guidance, num_inference_steps=1)
            got = pipe(**arguments, guidance_end=0.0, output_type="latent").latents
            assert difference(got, reference(variant)(**arguments).latents) < LIMIT


@pytest.mark.parametrize("variant", ["svd", "svd-v1"])
def test_a_clip_equals_pytorch(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """In one window and in several, with guidance that grows over the frames."""
    arguments = {
        "image": drawing(1, 64, 64),
        "control_images": [drawing(10 + number, 64, 64) for number in range(4)],
        "height": 64,
        "width": 64,
        "num_inference_steps": 3,
        "max_guidance_scale": 5.0,
        "seed": 3,
    }
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        for changes in ({}, {"frames_per_batch": 3, "overlap": 1, "control_end": 0.5}):
            whole = pipe(**arguments, **changes, output_type="latent").latents
            cut = {**arguments, **changes, "guidance_end": 0.4}
            got, wanted = pipe(**cut, output_type="latent").latents, reference(variant)(**cut).latents
            assert difference(got, wanted) < CLIP_LIMIT
            assert difference(got, whole) > CLIP_CHANGE
