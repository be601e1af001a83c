"""The runtime on exported tiny models against the recorded runs of the published pipelines."""

from __future__ import annotations

import numpy as np
import pytest
from recipe import drawing, rand, read_golden

from controlnext.runtime import Pipeline


@pytest.mark.parametrize(
    ("bundle", "latents_limit", "pixel_limit"),
    [("tiny_bundle", 2e-4, 0.5 / 255), ("tiny_bundle_fp16", 1e-2, 8 / 255)],
)
def test_runs_equal_the_recorded_ones(
    bundle: str, latents_limit: float, pixel_limit: float, request: pytest.FixtureRequest
) -> None:
    """Every sampler that was recorded, guided and not, several pictures at once, several sizes."""
    spec, vectors = read_golden("sdxl-pipeline")
    with Pipeline.load(request.getfixturevalue(bundle), cache=False) as pipeline:
        for case in spec["cases"]:
            seed, batch = case["seed"], case["batch"]
            width, height = case["width"], case["height"]
            out = pipeline(
                prompt_embeds=rand(seed, batch, 77, 48),
                negative_prompt_embeds=rand(seed + 1, batch, 77, 48),
                pooled_prompt_embeds=rand(seed + 2, batch, 24),
                negative_pooled_prompt_embeds=rand(seed + 3, batch, 24),
                control_image=drawing(seed + 5, width, height),
                control_scale=case["control_scale"],
                num_inference_steps=case["steps"],
                guidance_scale=case["guidance"],
                sampler=case["scheduler"],
                seed=case["generator_seed"],
                latents=rand(seed + 4, batch, 4, height // 8, width // 8),
                output_type="np",
            )
            latents = vectors[f"{case['name']}.latents"]
            assert np.linalg.norm(out.latents - latents) <= latents_limit * np.linalg.norm(latents), case
            image = vectors[f"{case['name']}.image"].transpose(0, 2, 3, 1)
            assert np.abs(out.images - image).max() <= pixel_limit, case
