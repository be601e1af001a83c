"""Runs with few steps, of samplers that run the denoiser twice, and with given steps equal PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers.schedulers import AysSchedules

from controlnext.reference import reference_pipeline
from controlnext.runtime import Batcher, Pipeline
from support.exports import load_tiny
from support.recipe import drawing, rand
from support.two_controls import difference

pytestmark = pytest.mark.export

LIMIT = 1e-4
"""Relative L2 of a run's latents; the parity of float32 exports allows twice that."""
SIZE = {"height": 64, "width": 64}
IMAGE = {
    **SIZE,
    "control_image": drawing(4, 64, 64),
    "prompt_embeds": rand(1, 1, 77, 48),
    "negative_prompt_embeds": rand(2, 1, 77, 48),
    "seed": 3,
}
CLIP = {
    **SIZE,
    "image": drawing(1, 64, 64),
    "control_images": [drawing(10 + number, 64, 64) for number in range(3)],
    "frames_per_batch": 2,
    "overlap": 1,
    "seed": 3,
}
PUBLISHED = AysSchedules["StableDiffusionXLSigmas"]
RUNS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # the settings of the models' cards: docs/few-steps.md
    ("lcm", {}, {"num_inference_steps": 4, "guidance_scale": 1.0}),
    ("lcm", {"original_inference_steps": 100}, {"num_inference_steps": 2, "guidance_scale": 1.5}),
    ("tcd", {"eta": 0.3}, {"num_inference_steps": 4, "guidance_scale": 0.0}),
    ("tcd", {"eta": 1.0}, {"timesteps": [800], "guidance_scale": 0.0}),
    ("tcd", {}, {"num_inference_steps": 2}),
    ("euler", {"timestep_spacing": "trailing"}, {"num_inference_steps": 4, "guidance_scale": 0.0}),
    ("euler_a", {"timestep_spacing": "trailing"}, {"num_inference_steps": 1, "guidance_scale": 0.0}),
    ("ddim", {"timestep_spacing": "trailing"}, {"num_inference_steps": 2, "guidance_scale": 0.0}),
    # of a step in two parts each has its own control scale
    ("heun", {}, {"num_inference_steps": 3, "control_start": 0.3, "control_end": 0.7}),
    ("heun", {"use_karras_sigmas": True}, {"num_inference_steps": 2, "guidance_end": 0.5}),
    ("dpmpp_sde", {}, {"num_inference_steps": 4}),
    ("dpmpp_sde", {"algorithm_type": "sde-dpmsolver++"}, {"num_inference_steps": 3}),
    ("dpmpp_2m_sde", {"use_karras_sigmas": True}, {"num_inference_steps": 4}),
    ("dpmpp_2m", {}, {"timesteps": [999, 700, 300, 10]}),
    ("euler", {}, {"sigmas": PUBLISHED[::3]}),
]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda variant: reference_pipeline(load_tiny(variant, tiny_checkpoint(variant)))


@pytest.fixture(scope="module")
def images(
    tiny: Callable[..., Path], reference: Callable[[str], Any]
) -> Iterator[tuple[Pipeline, Any, dict[str, Any]]]:
    """Yield the tiny SD1.5, its reference, and the scheduler's configuration that both have."""
    stock = reference("sd15")
    with Pipeline.load(tiny("sd15"), cache=False) as pipe:
        yield pipe, stock, dict(pipe._scheduler)


@pytest.mark.parametrize(("sampler", "options", "arguments"), RUNS)
def test_an_image_equals_pytorchs(
    images: tuple[Pipeline, Any, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    """The scheduler's options are those that an export was given."""
    pipe, stock, config = images
    monkeypatch.setattr(pipe, "_scheduler", {**config, **options})
    monkeypatch.setattr(stock, "_config", {**config, **options})
    call = {**IMAGE, "sampler": sampler, **arguments}
    got, wanted = pipe(**call, output_type="latent").latents, stock(**call).latents
    assert difference(got, wanted) < LIMIT


@pytest.mark.parametrize(
    ("variant", "call"),
    [
        ("svd", {**CLIP, "sigmas": [700.0, 15.0, 1.0, 0.0]}),
        (
            "sd3",
            {
                **{name: IMAGE[name] for name in ("height", "width", "control_image", "seed")},
                **{"prompt_embeds": rand(1, 1, 77, 32), "negative_prompt_embeds": rand(2, 1, 77, 32)},
                **{"pooled_prompt_embeds": rand(5, 1, 40), "negative_pooled_prompt_embeds": rand(6, 1, 40)},
                "sigmas": [1.0, 0.6, 0.2],
            },
        ),
    ],
)
def test_given_noise_levels_of_other_families_equal_pytorchs(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str, call: dict[str, Any]
) -> None:
    wanted = reference(variant)(**call).latents
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        assert difference(pipe(**call, output_type="latent").latents, wanted) < LIMIT


def test_a_step_is_a_run_of_the_denoiser(images: tuple[Pipeline, Any, dict[str, Any]]) -> None:
    """As for diffusers' callback: 2 n - 1 of n steps of Heun; alone, and beside others in a batcher."""
    pipe, stock, _ = images
    call = {**IMAGE, "sampler": "heun", "num_inference_steps": 3}
    steps = list(pipe.stream(**call))
    assert [(step.index, step.total) for step in steps] == [(number, 5) for number in range(5)]
    assert stock.set_steps("heun", 3)[1] == 5
    assert [step.timestep for step in steps] == stock.pipeline.scheduler.timesteps.tolist()
    seen: list[int] = []
    with Batcher(pipe) as batcher:
        other = batcher.submit(**{**call, "sampler": "lcm", "num_inference_steps": 4}, output_type="latent")
        batched = batcher.submit(**call, output_type="latent", on_step=lambda step: seen.append(step.index))
        assert difference(batched.result(60).latents, steps[-1].latents) < LIMIT
        assert other.result(60).latents.shape == steps[-1].latents.shape
    assert seen == list(range(5))
