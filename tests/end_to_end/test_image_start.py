"""Runs that start from an image equal diffusers' pipelines for that, steered by the reference's control."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from support.exports import load_tiny
from support.recipe import drawing, rand
from support.start_images import mask, outside, photo
from support.two_controls import difference

pytestmark = pytest.mark.export

LIMIT = 1e-4
"""Relative L2 of a run's latents; the parity of float32 exports allows twice that. Measured: 1e-5."""
WIDTHS = {"sd15": (48, None), "sdxl": (48, 24), "sd3": (32, 40)}
"""Widths of the embeddings, and of the pooled ones."""
PIXEL = 2 / 255
"""Largest difference of a pixel: 8 bits rounded the other way, and what the second run makes of it."""


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def of(variant: str) -> Any:
        if variant not in made:
            made[variant] = reference_pipeline(load_tiny(variant, tiny_checkpoint(variant)))
        return made[variant]

    return of


def _arguments(
    variant: str, count: int = 1, size: tuple[int, int] = (64, 96), **changes: Any
) -> dict[str, Any]:
    width, pooled = WIDTHS[variant]
    given = {"prompt_embeds": rand(1, count, 77, width), "negative_prompt_embeds": rand(2, count, 77, width)}
    if pooled is not None:
        given["pooled_prompt_embeds"] = rand(5, count, pooled)
        given["negative_pooled_prompt_embeds"] = rand(6, count, pooled)
    usual = {"height": size[0], "width": size[1], "guidance_scale": 4.0, "num_inference_steps": 5, "seed": 3}
    images = {"image": photo(7, 101, 67), "control_image": drawing(4, size[1], size[0])}
    return {**given, **usual, **images, "control_scale": 0.7, **changes}


def _same(pipe: Any, reference: Any, arguments: dict[str, Any]) -> np.ndarray:
    """Assert that both give the same latents; return them."""
    wanted = reference(**arguments).latents
    got: np.ndarray = pipe(**arguments, output_type="latent").latents
    assert difference(got, wanted) < LIMIT, (arguments.keys(), difference(got, wanted))
    return got


@pytest.mark.parametrize("variant", WIDTHS)
def test_image_to_image_equals_diffusers(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """At two sizes, guided and not, at several strengths, of which some are no whole number of steps."""
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        for size, strength, guidance in (((64, 96), 0.5, 4.0), ((96, 64), 0.75, 1.0), ((64, 64), 1.0, 4.0)):
            arguments = _arguments(variant, size=size, strength=strength, guidance_scale=guidance)
            got = _same(pipe, reference(variant), arguments)
            without = pipe(**{**arguments, "control_scale": 0.0}, output_type="latent").latents
            assert difference(got, without) > 20 * LIMIT


@pytest.mark.parametrize("variant", WIDTHS)
def test_inpainting_equals_diffusers(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """With a mask of grey edges; noise that a sampler draws comes after that of diffusers' masked image."""
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        sampler = "euler_a" if "euler_a" in pipe.family.samplers else None
        for size, strength, guidance in (((64, 96), 0.6, 4.0), ((96, 64), 1.0, 1.0)):
            arguments = _arguments(variant, size=size, strength=strength, guidance_scale=guidance)
            for own in (None, sampler):
                _same(
                    pipe,
                    reference(variant),
                    {**arguments, "mask_image": mask(101, 67, soft=True), "sampler": own},
                )


def test_several_prompts_and_images_equal_diffusers(
    tiny: Callable[..., Path], reference: Callable[[str], Any]
) -> None:
    """An image, a mask and a control image for each prompt; and two results of one image."""
    two = _arguments(
        "sdxl",
        2,
        image=[photo(7, 101, 67), photo(8, 101, 67)],
        mask_image=[mask(101, 67), mask(101, 67).rotate(180)],
        control_image=[drawing(4, 96, 64), drawing(5, 96, 64)],
    )
    with Pipeline.load(tiny("sdxl"), cache=False) as pipe:
        _same(pipe, reference("sdxl"), two)
        one = _arguments("sdxl", num_images_per_prompt=2, sampler="ddpm")
        _same(pipe, reference("sdxl"), one)
        _same(pipe, reference("sdxl"), {**one, "mask_image": mask(101, 67)})


@pytest.mark.parametrize("variant", WIDTHS)
def test_what_counts_steps_counts_those_of_the_shortened_run(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """A control that acts in a part of the run, guidance that ends in it, the step cache."""
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        for masked in ({}, {"mask_image": mask(101, 67)}):
            arguments = _arguments(variant, num_inference_steps=8, strength=0.5, **masked)
            whole = _same(pipe, reference(variant), {**arguments, "cache_interval": 2})
            for changes in ({"control_start": 0.4, "guidance_end": 0.3}, {"control_end": 0.5}):
                assert (
                    difference(_same(pipe, reference(variant), {**arguments, **changes}), whole) > 20 * LIMIT
                )
            steps = list(pipe.stream(**arguments))
            assert [step.index for step in steps] == [0, 1, 2, 3]
            assert {step.total for step in steps} == {4}


def test_all_samplers_start_from_an_image_as_diffusers(
    tiny: Callable[..., Path], reference: Callable[[str], Any]
) -> None:
    """Heun's steps are two for each that is asked for; timesteps may be given."""
    with Pipeline.load(tiny("sd15"), cache=False) as pipe:
        for sampler in pipe.family.samplers:
            arguments = _arguments("sd15", size=(64, 64), sampler=sampler, strength=0.6, guidance_scale=1.0)
            _same(pipe, reference("sd15"), {**arguments, "mask_image": mask(101, 67)})
        given = _arguments("sd15", sampler="ddpm", timesteps=[900, 600, 300, 50], strength=0.5)
        _same(pipe, reference("sd15"), {**given, "num_inference_steps": None})


@pytest.mark.parametrize("variant", WIDTHS)
def test_a_crop_around_the_mask_is_put_back_as_diffusers_does(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """Outside the mask the result has the image's pixels. The control image is cropped too."""
    image, white = photo(7, 150, 120), mask(150, 120)
    arguments = _arguments(variant, image=image, mask_image=white, control_image=drawing(4, 152, 120))
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        for changes in ({"padding_mask_crop": 8}, {"padding_mask_crop": 200}, {"overlay": True}):
            wanted = reference(variant)(**arguments, **changes)
            got = pipe(**arguments, **changes)
            assert difference(got.latents, wanted.latents) < LIMIT
            (made,) = got.images
            assert made.size == image.size
            pixels = np.asarray(made)
            np.testing.assert_array_equal(pixels[outside(white)], np.asarray(image)[outside(white)])
            assert np.abs(pixels / 255 - wanted.images[0]).max() < PIXEL


@pytest.mark.parametrize("variant", WIDTHS)
def test_a_second_run_at_a_larger_size_equals_diffusers(
    tiny: Callable[..., Path], reference: Callable[[str], Any], variant: str
) -> None:
    """Of a run from noise, and of an image; enlarged as pixels and as latents."""
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        common = {"num_inference_steps": 3, "strength": 0.7, "upscale": 1.5}
        for mode in ("pixel", "latent"):
            for image in (None, photo(7, 101, 67)):
                arguments = _arguments(variant, size=(64, 96), image=image, upscale_mode=mode, **common)
                latents = _same(pipe, reference(variant), arguments)
                assert latents.shape[2:] == (12, 18)
        steps = list(pipe.stream(**{**arguments, "image": None}))
        assert [step.index for step in steps] == list(range(steps[0].total))
        assert [step.latents.shape[-1] for step in steps] == [12] * 3 + [18] * (len(steps) - 3)
