"""Runs at the edges of what is accepted give PyTorch's latents: sizes, batches, scales, one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlnext.evaluation.metrics import relative_l2
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from support.exports import load_tiny
from support.recipe import LATENTS, drawing, rand

pytestmark = pytest.mark.export

CALLS: dict[str, dict[str, Any]] = {
    "one latent": {"height": 8, "width": 8},
    "1 x 8 latents": {"height": 8, "width": 64},
    "2048 x 64": {"height": 64, "width": 2048, "num_inference_steps": 1},
    "16 images": {"num_images_per_prompt": 16, "num_inference_steps": 1},
    "3 prompts of 2 images": {"prompts": 3, "num_images_per_prompt": 2},
    "one step": {"num_inference_steps": 1},
    "scale -1": {"control_scale": -1.0},
    "scale 5": {"control_scale": 5.0},
    "guidance -3": {"guidance_scale": -3.0},
    "guidance 100": {"guidance_scale": 100.0},
}


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., Path], tiny_checkpoint: Callable[[str], Path]) -> Iterator[tuple[Any, Any]]:
    reference = reference_pipeline(load_tiny("sd15", tiny_checkpoint("sd15")))
    with Pipeline.load(tiny("sd15"), device="cpu", cache=False) as pipe:
        yield pipe, reference


@pytest.mark.parametrize("case", CALLS)
def test_a_run_at_the_edge_equals_pytorchs(case: str, pair: tuple[Any, Any]) -> None:
    pipe, reference = pair
    changes = dict(CALLS[case])
    count = changes.pop("prompts", 1)
    call = {
        "prompt_embeds": rand(1, count, 77, 48),
        "negative_prompt_embeds": rand(2, count, 77, 48),
        "control_image": drawing(3, 64, 64),
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "seed": 4,
        **changes,
    }
    assert (
        relative_l2(pipe(**call, output_type="latent").latents, reference(**call).latents) < LATENTS["fp32"]
    )
