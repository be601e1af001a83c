"""The pipeline on a bundle whose denoiser can be worked out: what it feeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image

from controlnext.runtime import Pipeline, Step
from controlnext.runtime.prompts import TextEncoders
from support.fake_bundle import SCHEDULER, VAE_CONFIG, fake_denoiser, write_fake_bundle
from support.image_calls import HEIGHT, WIDTH, arguments, embeds
from support.recipe import drawing, rand


def _diffusers_run(
    positive: tuple[np.ndarray, np.ndarray],
    negative: tuple[np.ndarray, np.ndarray] | None,
    control: np.ndarray,
    scales: list[float],
    guidance: float = 5.0,
    seed: int = 5,
    latents: np.ndarray | None = None,
) -> np.ndarray:
    """The loop of diffusers' SDXL pipeline around the fake denoiser; rows as the caller arranged them."""
    scheduler = EulerAncestralDiscreteScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(len(scales))
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (len(positive[0]), 4, HEIGHT // 8, WIDTH // 8)
    noise = torch.randn(shape, generator=generator) if latents is None else torch.from_numpy(latents)
    sample = noise * scheduler.init_noise_sigma
    halves = [positive] if negative is None else [negative, positive]
    hidden, pooled = (np.concatenate([half[i] for half in halves]) for i in (0, 1))
    rows = len(hidden)
    for timestep, scale in zip(scheduler.timesteps, scales, strict=True):
        model_input = scheduler.scale_model_input(torch.cat([sample] * len(halves)), timestep)
        feed = {
            "sample": model_input.numpy(),
            "timestep": np.full(rows, float(timestep), np.float32),
            "encoder_hidden_states": hidden,
            "text_embeds": pooled,
            "time_ids": np.tile(np.float32([HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]), (rows, 1)),
            "control_image": control,
            "control_scale": np.full(rows, scale, np.float32),
        }
        output = torch.from_numpy(fake_denoiser(feed))
        if negative is not None:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
    return sample.numpy()


def _control(*images: Image.Image) -> np.ndarray:
    return np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) / 255 for image in images])


def _close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_a_guided_run_is_that_of_diffusers(pipe: Pipeline) -> None:
    """Initial noise, step noise, guidance, time ids, control; a missing negative prompt is zeros."""
    positive = TextEncoders(pipe.bundle)(["a red circle"])
    wanted = _diffusers_run(positive, positive.zeros(), _control(drawing(1, WIDTH, HEIGHT)), [0.7] * 3)
    _close(pipe(**arguments(control_scale=0.7)).latents, wanted)


def test_an_unguided_run(pipe: Pipeline) -> None:
    positive = TextEncoders(pipe.bundle)(["a red circle"])
    wanted = _diffusers_run(positive, None, _control(drawing(1, WIDTH, HEIGHT)), [1.0] * 3)
    _close(pipe(**arguments(guidance_scale=1.0, negative_prompt="blue")).latents, wanted)


@pytest.mark.parametrize("negative", ["", "blue", ["blue"]])
def test_a_negative_prompt_is_encoded_even_if_empty(pipe: Pipeline, negative: str | list[str]) -> None:
    encode = TextEncoders(pipe.bundle)
    text = negative if isinstance(negative, str) else negative[0]
    control = _control(drawing(1, WIDTH, HEIGHT))
    wanted = _diffusers_run(encode(["a red circle"]), encode([text]), control, [1.0] * 3)
    _close(pipe(**arguments(negative_prompt=negative)).latents, wanted)


def test_without_zeros_a_missing_negative_prompt_is_the_empty_text(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle", force_zeros=False)
    with Pipeline.load(path, cache=False) as pipeline:
        got = pipeline(**arguments()).latents
        np.testing.assert_array_equal(got, pipeline(**arguments(negative_prompt="")).latents)
        assert not np.array_equal(got, pipeline(**arguments(negative_prompt="blue")).latents)


def test_several_prompts_images_and_images_per_prompt(pipe: Pipeline) -> None:
    """Rows are prompt by prompt, the copies of one side by side, and the negative half comes first."""
    images = [drawing(1, WIDTH, HEIGHT), drawing(2, WIDTH, HEIGHT)]
    encode = TextEncoders(pipe.bundle)

    def rows(*prompts: str) -> tuple[np.ndarray, np.ndarray]:
        hidden, pooled = encode(prompts)
        return hidden.repeat(2, axis=0), pooled.repeat(2, axis=0)

    control = _control(*images).repeat(2, axis=0)
    wanted = _diffusers_run(
        rows("a red circle", "blue"), rows("green", "a"), np.concatenate([control, control]), [1.0] * 3
    )
    got = pipe(
        **arguments(
            prompt=["a red circle", "blue"],
            negative_prompt=["green", "a"],
            control_image=images,
            num_images_per_prompt=2,
        )
    ).latents
    _close(got, wanted)


def test_embeddings_and_latents_may_be_given(bare: Pipeline) -> None:
    given, latents = embeds(2), rand(9, 2, 4, HEIGHT // 8, WIDTH // 8)
    wanted = _diffusers_run(
        (given["prompt_embeds"], given["pooled_prompt_embeds"]),
        (given["negative_prompt_embeds"], given["negative_pooled_prompt_embeds"]),
        _control(drawing(1, WIDTH, HEIGHT)),
        [1.0] * 3,
        latents=latents,
    )
    # the seed's first numbers are then the step noise
    _close(bare(**arguments(prompt=None, latents=latents.tolist(), **given)).latents, wanted)


def test_control_acts_only_in_its_part_of_the_run(pipe: Pipeline) -> None:
    """Steps 2 and 3 of 4: the first begins before 0.2, the last ends after 0.8 (diffusers' rule)."""
    positive = TextEncoders(pipe.bundle)(["a red circle"])
    control = _control(drawing(1, WIDTH, HEIGHT))
    wanted = _diffusers_run(positive, positive.zeros(), control, [0.0, 1.0, 1.0, 0.0])
    got = pipe(**arguments(num_inference_steps=4, control_start=0.2, control_end=0.8)).latents
    _close(got, wanted)


def test_one_control_scale_for_each_prompt(pipe: Pipeline) -> None:
    latents = rand(3, 1, 4, HEIGHT // 8, WIDTH // 8)
    alone = [
        pipe(**arguments(prompt="a", control_scale=scale, sampler="euler", latents=latents)).latents
        for scale in (0.0, 1.0)
    ]
    assert not np.allclose(*alone)
    twice = pipe(
        **arguments(
            prompt=["a", "a"], control_scale=[0.0, 1.0], sampler="euler", latents=latents.repeat(2, 0)
        )
    ).latents
    _close(twice, np.concatenate(alone))


def test_output_types_agree(pipe: Pipeline) -> None:
    latent, array, pil = (pipe(**arguments(output_type=kind)) for kind in ("latent", "np", "pil"))
    assert latent.images is None
    assert latent.latents.shape == (1, 4, HEIGHT // 8, WIDTH // 8)
    np.testing.assert_array_equal(latent.latents, array.latents)
    assert array.images.shape == (1, HEIGHT, WIDTH, 3)
    pixels = latent.latents[0, :3, 0, 0] / VAE_CONFIG["scaling_factor"] / 2 + 0.5
    np.testing.assert_allclose(array.images[0, 0, 0], pixels.clip(0, 1), rtol=1e-5)
    (image,) = pil.images
    assert image.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.asarray(image), (array.images[0] * 255).round().astype(np.uint8))


def test_the_stream_gives_every_step_and_can_be_left(pipe: Pipeline) -> None:
    steps = list(pipe.stream(**arguments()))
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[0].timestep > steps[1].timestep > steps[2].timestep
    result = pipe(**arguments(output_type="np"))
    np.testing.assert_array_equal(steps[-1].latents, result.latents)
    np.testing.assert_array_equal(pipe.decode(steps[-1].latents, "np"), result.images)
    first = next(iter(pipe.stream(**arguments())))
    assert isinstance(first, Step)
    np.testing.assert_array_equal(first.latents, steps[0].latents)


def test_defaults_are_the_familys(pipe: Pipeline) -> None:
    steps = list(pipe.stream("a", control_image=drawing(1, WIDTH, HEIGHT)))
    family = pipe.bundle.family
    explicit = pipe(
        "a",
        control_image=drawing(1, WIDTH, HEIGHT),
        sampler=family.default_sampler,
        num_inference_steps=family.default_steps,
        guidance_scale=family.default_guidance,
    )
    assert steps[-1].total == family.default_steps
    np.testing.assert_array_equal(steps[-1].latents, explicit.latents)


def test_sizes(pipe: Pipeline) -> None:
    """As asked for, else the latents', else the control image's."""
    image = drawing(1, 40, 32)

    def size(**changes: Any) -> tuple[int, ...]:
        return pipe(**arguments(control_image=image, num_inference_steps=1, **changes)).latents.shape[2:]

    assert size() == (4, 5)
    assert size(height=16, width=24) == (2, 3)
    assert size(height=16) == (2, 5)
    assert size(latents=rand(0, 1, 4, 6, 7)) == (6, 7)
