"""The pipeline on a bundle whose denoiser can be worked out: what it feeds, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image

from controlnext.bundle.files import MANIFEST
from controlnext.errors import BundleError, InputError, WorkError
from controlnext.runtime import Pipeline, Step
from controlnext.runtime.prompts import TextEncoders
from support.fake_bundle import SCHEDULER, VAE_CONFIG, fake_denoiser, write_fake_bundle
from support.recipe import drawing, rand

HEIGHT, WIDTH = 16, 24


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path = write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle")
    with Pipeline.load(path, cache=False) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Without text encoders, and without zeros for a missing negative prompt."""
    folder = tmp_path_factory.mktemp("bare") / "bundle"
    with Pipeline.load(
        write_fake_bundle(folder, text_encoders=False, force_zeros=False), cache=False
    ) as made:
        yield made


def _arguments(**changes: Any) -> dict[str, Any]:
    arguments = {
        "prompt": "a red circle",
        "control_image": drawing(1, WIDTH, HEIGHT),
        "num_inference_steps": 3,
        "sampler": "euler_a",
        "seed": 5,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def _embeds(count: int = 1, start: int = 0) -> dict[str, np.ndarray]:
    return {
        "prompt_embeds": rand(start, count, 7, 16),
        "negative_prompt_embeds": rand(start + 1, count, 7, 16),
        "pooled_prompt_embeds": rand(start + 2, count, 5),
        "negative_pooled_prompt_embeds": rand(start + 3, count, 5),
    }


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
    _close(pipe(**_arguments(control_scale=0.7)).latents, wanted)


def test_an_unguided_run(pipe: Pipeline) -> None:
    positive = TextEncoders(pipe.bundle)(["a red circle"])
    wanted = _diffusers_run(positive, None, _control(drawing(1, WIDTH, HEIGHT)), [1.0] * 3)
    _close(pipe(**_arguments(guidance_scale=1.0, negative_prompt="blue")).latents, wanted)


@pytest.mark.parametrize("negative", ["", "blue", ["blue"]])
def test_a_negative_prompt_is_encoded_even_if_empty(pipe: Pipeline, negative: str | list[str]) -> None:
    encode = TextEncoders(pipe.bundle)
    text = negative if isinstance(negative, str) else negative[0]
    control = _control(drawing(1, WIDTH, HEIGHT))
    wanted = _diffusers_run(encode(["a red circle"]), encode([text]), control, [1.0] * 3)
    _close(pipe(**_arguments(negative_prompt=negative)).latents, wanted)


def test_without_zeros_a_missing_negative_prompt_is_the_empty_text(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle", force_zeros=False)
    with Pipeline.load(path, cache=False) as pipeline:
        got = pipeline(**_arguments()).latents
        np.testing.assert_array_equal(got, pipeline(**_arguments(negative_prompt="")).latents)
        assert not np.array_equal(got, pipeline(**_arguments(negative_prompt="blue")).latents)


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
        **_arguments(
            prompt=["a red circle", "blue"],
            negative_prompt=["green", "a"],
            control_image=images,
            num_images_per_prompt=2,
        )
    ).latents
    _close(got, wanted)


def test_embeddings_and_latents_may_be_given(bare: Pipeline) -> None:
    given, latents = _embeds(2), rand(9, 2, 4, HEIGHT // 8, WIDTH // 8)
    wanted = _diffusers_run(
        (given["prompt_embeds"], given["pooled_prompt_embeds"]),
        (given["negative_prompt_embeds"], given["negative_pooled_prompt_embeds"]),
        _control(drawing(1, WIDTH, HEIGHT)),
        [1.0] * 3,
        latents=latents,
    )
    # the seed's first numbers are then the step noise
    _close(bare(**_arguments(prompt=None, latents=latents.tolist(), **given)).latents, wanted)


def test_control_acts_only_in_its_part_of_the_run(pipe: Pipeline) -> None:
    """Steps 2 and 3 of 4: the first begins before 0.2, the last ends after 0.8 (diffusers' rule)."""
    positive = TextEncoders(pipe.bundle)(["a red circle"])
    control = _control(drawing(1, WIDTH, HEIGHT))
    wanted = _diffusers_run(positive, positive.zeros(), control, [0.0, 1.0, 1.0, 0.0])
    got = pipe(**_arguments(num_inference_steps=4, control_start=0.2, control_end=0.8)).latents
    _close(got, wanted)


def test_one_control_scale_for_each_prompt(pipe: Pipeline) -> None:
    latents = rand(3, 1, 4, HEIGHT // 8, WIDTH // 8)
    alone = [
        pipe(**_arguments(prompt="a", control_scale=scale, sampler="euler", latents=latents)).latents
        for scale in (0.0, 1.0)
    ]
    assert not np.allclose(*alone)
    twice = pipe(
        **_arguments(
            prompt=["a", "a"], control_scale=[0.0, 1.0], sampler="euler", latents=latents.repeat(2, 0)
        )
    ).latents
    _close(twice, np.concatenate(alone))


def test_output_types_agree(pipe: Pipeline) -> None:
    latent, array, pil = (pipe(**_arguments(output_type=kind)) for kind in ("latent", "np", "pil"))
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
    steps = list(pipe.stream(**_arguments()))
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[0].timestep > steps[1].timestep > steps[2].timestep
    result = pipe(**_arguments(output_type="np"))
    np.testing.assert_array_equal(steps[-1].latents, result.latents)
    np.testing.assert_array_equal(pipe.decode(steps[-1].latents, "np"), result.images)
    first = next(iter(pipe.stream(**_arguments())))
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
        return pipe(**_arguments(control_image=image, num_inference_steps=1, **changes)).latents.shape[2:]

    assert size() == (4, 5)
    assert size(height=16, width=24) == (2, 3)
    assert size(height=16) == (2, 5)
    assert size(latents=rand(0, 1, 4, 6, 7)) == (6, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"height": 20},
            r"height is 20; height and width must be multiples of 8 \(the nearest are 16 and 24",
        ),
        ({"width": 0}, "width is 0"),
        ({"width": -8}, "width is -8"),
        ({"width": 16.0}, "width is 16.0"),
        (
            {"control_image": drawing(1, 24, 16).resize((24, 7))},
            r"the height of the control image is 7; .* must be multiples of 8 \(the smallest is 8\)",
        ),
        ({"control_image": None}, "no control image was given"),
        ({"control_image": [drawing(1, 24, 16)] * 3}, "3 control images were given for 1 prompts"),
        ({"control_image": np.full((16, 24, 3), np.nan)}, "image has values from nan"),
        ({"control_scale": float("nan")}, "control_scale has 1 values of 1 that are NaN or infinite"),
        ({"control_scale": [1.0, 2.0]}, r"control_scale has shape \(2,\) for 1 prompts"),
        ({"control_scale": "strong"}, "control_scale is not an array of numbers"),
        ({"control_start": 0.6, "control_end": 0.5}, "control_start is 0.6 and control_end 0.5"),
        ({"control_end": 1.5}, "control_end 1.5; give 0 <= control_start < control_end <= 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": -4}, "num_inference_steps is -4"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high'"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be an integer from"),
        ({"seed": 1.5}, "seed is 1.5; it must be an integer"),
        ({"sampler": "plms"}, "unknown sampler 'plms' for Stable Diffusion XL; accepted: unipc, euler"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg'; accepted: pil, np, latent"),
        ({"latents": rand(0, 1, 4, 3, 3), "height": 16}, r"latents have shape .*, expected \(1, 4, 2, 3\)"),
        ({"latents": rand(0, 2, 4, 2, 3)}, r"expected \(1, 4, 2, 3\)"),
        ({"latents": rand(0, 4, 2, 3)}, "expected .batch, channels, height/8, width/8"),
        ({"latents": np.full((1, 4, 2, 3), np.nan)}, "latents has 24 values of 24 that are NaN"),
        ({"latents": [[1, 2], [3]]}, "latents is not an array of numbers"),
        ({"prompt": None}, "no prompt was given; set `prompt` or `prompt_embeds`"),
        ({"prompt": 3}, "prompt is 3; it must be a text or a list of texts"),
        ({"prompt": []}, "prompt is .]; it must be a text"),
        ({"prompt": ["a", None]}, "it must be a text or a list of texts"),
        ({"prompt_embeds": rand(0, 1, 7, 16)}, "both prompt and prompt_embeds were given"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts for a batch of 1"),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": rand(0, 1, 7, 16)},
            "both negative_prompt and negative_prompt_embeds were given",
        ),
        (
            {"negative_prompt_embeds": rand(0, 1, 8, 16)},
            "negative_prompt_embeds was given without negative_pooled_prompt_embeds",
        ),
        (
            {"pooled_prompt_embeds": rand(0, 2, 5)},
            r"pooled_prompt_embeds has shape \(2, 5\), expected \(1, 5\)",
        ),
    ],
)
def test_bad_arguments_are_one_clear_error(pipe: Pipeline, changes: dict[str, Any], message: str) -> None:
    """With the argument at fault: of two that do not go together one, of a missing one its name."""
    with pytest.raises(InputError, match=message) as caught:
        pipe.stream(**_arguments(**changes))
    assert "\n" not in str(caught.value)
    assert caught.value.argument in {*changes, "height", "prompt", "negative_pooled_prompt_embeds"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt": "a red circle"},
            "has no text encoders; give `prompt_embeds` and, with guidance, `negative_prompt_embeds`",
        ),
        ({**_embeds(), "negative_prompt_embeds": None}, "has no text encoders"),
        ({**_embeds(), "pooled_prompt_embeds": None}, "without pooled_prompt_embeds; this model needs both"),
        ({**_embeds(), "prompt_embeds": rand(0, 1, 7, 12)}, r"\(1, 7, 12\), expected \(batch, tokens, 16\)"),
        ({**_embeds(), "prompt_embeds": rand(0, 7, 16)}, r"shape \(7, 16\), expected"),
        ({**_embeds(), "prompt_embeds": rand(0, 1, 9, 16)}, "the prompt's .1, 9, 16.; they must agree"),
        ({**_embeds(), "prompt_embeds": np.full((1, 7, 16), np.inf)}, "prompt_embeds has 112 values of 112"),
        ({**_embeds(), "pooled_prompt_embeds": rand(0, 1, 4)}, r"\(1, 4\), expected \(1, 5\)"),
    ],
)
def test_bad_embeddings_are_one_clear_error(bare: Pipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bare.stream(**_arguments(**{"prompt": None, **changes}))


def test_a_denoiser_that_overflows_is_named(bare: Pipeline) -> None:
    huge = {**_embeds(), "prompt_embeds": np.full((1, 7, 16), 3e38)}
    with pytest.raises(WorkError, match="output at step 1 of 3 is not finite: float16 overflows"):
        bare(**_arguments(prompt=None, **huge))


def test_a_closed_pipeline_says_so(tmp_path: Path) -> None:
    with Pipeline.load(write_fake_bundle(tmp_path / "bundle"), cache=False) as pipeline:
        pipeline(**_arguments())
    with pytest.raises(InputError, match="is closed; load it again"):
        pipeline(**_arguments())


def test_loading_finds_what_is_missing_or_truncated_anywhere(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    weights = path / "text_encoder_2" / "model.onnx.data"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    with pytest.raises(BundleError, match=r"text_encoder_2/model\.onnx\.data has .*sha256 .*truncated"):
        Pipeline.load(path)
    weights.unlink()
    with pytest.raises(BundleError, match=r"text_encoder_2/model\.onnx\.data is missing"):
        Pipeline.load(path)


def test_loading_refuses_an_unknown_family(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "family": "sd9"}))
    with pytest.raises(InputError, match="unknown model 'sd9'; accepted"):
        Pipeline.load(path)
