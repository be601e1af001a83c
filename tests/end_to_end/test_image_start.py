"""Runs that start from an image equal diffusers' pipelines for that, steered by the reference's control."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Pair:
    """The tiny model of a variant by the runtime and by diffusers."""

    variant: str
    pipe: Any
    reference: Any

    def arguments(self, count: int = 1, size: tuple[int, int] = (64, 64), **changes: Any) -> dict[str, Any]:
        """Return those of a short guided run from an image."""
        width, pooled = WIDTHS[self.variant]
        given = {
            "prompt_embeds": rand(1, count, 77, width),
            "negative_prompt_embeds": rand(2, count, 77, width),
            "height": size[0],
            "width": size[1],
            "guidance_scale": 4.0,
            "num_inference_steps": 5,
            "seed": 3,
            "image": photo(7, 101, 67),
            "control_image": drawing(4, size[1], size[0]),
            "control_scale": 0.7,
        }
        if pooled is not None:
            given["pooled_prompt_embeds"] = rand(5, count, pooled)
            given["negative_pooled_prompt_embeds"] = rand(6, count, pooled)
        return {**given, **changes}

    def latents(self, arguments: dict[str, Any]) -> np.ndarray:
        """Return those of the runtime."""
        made: np.ndarray = self.pipe(**arguments, output_type="latent").latents
        return made

    def same(self, arguments: dict[str, Any]) -> np.ndarray:
        """Assert that both give the same latents; return them."""
        wanted, got = self.reference(**arguments).latents, self.latents(arguments)
        assert difference(got, wanted) < LIMIT, (arguments.keys(), difference(got, wanted))
        return got


@pytest.fixture(scope="module")
def pair(
    tiny: Callable[..., Path], tiny_checkpoint: Callable[[str], Path]
) -> Iterator[Callable[[str], Pair]]:
    made: dict[str, Pair] = {}

    def of(variant: str) -> Pair:
        if variant not in made:
            pipe = Pipeline.load(tiny(variant), cache=False)
            made[variant] = Pair(
                variant, pipe, reference_pipeline(load_tiny(variant, tiny_checkpoint(variant)))
            )
        return made[variant]

    yield of
    for one in made.values():
        one.pipe.close()


@pytest.mark.parametrize("variant", WIDTHS)
def test_image_to_image_equals_diffusers(pair: Callable[[str], Pair], variant: str) -> None:
    """At two sizes, guided and not; half of three steps, and a strength that leaves nothing of the image."""
    of = pair(variant)
    for size, strength, guidance in (((64, 96), 0.5, 4.0), ((80, 64), 1.0, 1.0)):
        arguments = of.arguments(size=size, strength=strength, guidance_scale=guidance, num_inference_steps=3)
        got = of.same(arguments)
        assert difference(got, of.latents({**arguments, "control_scale": 0.0})) > 20 * LIMIT


@pytest.mark.parametrize("variant", WIDTHS)
def test_inpainting_equals_diffusers(pair: Callable[[str], Pair], variant: str) -> None:
    """With a mask of grey edges; noise that a sampler draws comes after that of diffusers' masked image."""
    of, soft = pair(variant), mask(101, 67, soft=True)
    drawing_noise = "euler_a" if "euler_a" in of.pipe.family.samplers else None
    for size, strength, guidance, sampler in (
        ((64, 96), 0.6, 4.0, None),
        ((80, 64), 1.0, 1.0, drawing_noise),
    ):
        of.same(
            of.arguments(
                size=size,
                strength=strength,
                guidance_scale=guidance,
                num_inference_steps=3,
                mask_image=soft,
                sampler=sampler,
            )
        )


def test_several_prompts_and_images_equal_diffusers(pair: Callable[[str], Pair]) -> None:
    """An image, a mask and a control image for each prompt; and two results of one image."""
    of = pair("sdxl")
    of.same(
        of.arguments(
            2,
            image=[photo(7, 101, 67), photo(8, 101, 67)],
            mask_image=[mask(101, 67), mask(101, 67).rotate(180)],
            control_image=[drawing(4, 64, 64), drawing(5, 64, 64)],
            num_inference_steps=3,
        )
    )
    one = of.arguments(num_images_per_prompt=2, sampler="ddpm", num_inference_steps=3)
    of.same(one)
    of.same({**one, "mask_image": mask(101, 67)})


@pytest.mark.parametrize("variant", WIDTHS)
def test_what_counts_steps_counts_those_of_the_shortened_run(
    pair: Callable[[str], Pair], variant: str
) -> None:
    """A control that acts in a part of the run, guidance that ends in it, the step cache."""
    of = pair(variant)
    arguments = of.arguments(num_inference_steps=8, strength=0.5)
    whole = of.same({**arguments, "cache_interval": 2})
    masked = {**arguments, "mask_image": mask(101, 67)}
    for changes in ({"control_start": 0.4, "guidance_end": 0.3}, {"control_end": 0.5}):
        assert difference(of.same({**arguments, **changes}), whole) > 20 * LIMIT
    of.same({**masked, "control_end": 0.5, "guidance_end": 0.3, "cache_interval": 2})
    steps = list(of.pipe.stream(**arguments))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert {step.total for step in steps} == {4}


def test_all_samplers_start_from_an_image_as_diffusers(pair: Callable[[str], Pair]) -> None:
    """Heun's steps are two for each that is asked for; timesteps may be given."""
    of = pair("sd15")
    for sampler in of.pipe.family.samplers:
        of.same(of.arguments(sampler=sampler, strength=0.6, guidance_scale=1.0, mask_image=mask(101, 67)))
    given = of.arguments(sampler="ddpm", timesteps=[900, 600, 300, 50], strength=0.5)
    of.same({**given, "num_inference_steps": None})


@pytest.mark.parametrize("variant", WIDTHS)
def test_a_crop_around_the_mask_is_put_back_as_diffusers_does(
    pair: Callable[[str], Pair], variant: str
) -> None:
    """Outside the mask the result has the image's pixels. The control image is cropped too."""
    of, image, white = pair(variant), photo(7, 150, 120), mask(150, 120)
    arguments = of.arguments(
        image=image, mask_image=white, control_image=drawing(4, 152, 120), num_inference_steps=2
    )
    for changes in ({"padding_mask_crop": 8}, {"overlay": True}):
        wanted, got = of.reference(**arguments, **changes), of.pipe(**arguments, **changes)
        assert difference(got.latents, wanted.latents) < LIMIT
        (made,) = got.images
        assert made.size == image.size
        pixels = np.asarray(made)
        np.testing.assert_array_equal(pixels[outside(white)], np.asarray(image)[outside(white)])
        assert np.abs(pixels / 255 - wanted.images[0]).max() < PIXEL


@pytest.mark.parametrize("variant", WIDTHS)
def test_a_second_run_at_a_larger_size_equals_diffusers(pair: Callable[[str], Pair], variant: str) -> None:
    """Of a run from noise, and of an image; enlarged as pixels and as latents."""
    of = pair(variant)
    common = {"num_inference_steps": 2, "strength": 0.7, "upscale": 1.5}
    for mode, image in (("pixel", None), ("latent", None), ("latent", photo(7, 101, 67))):
        arguments = of.arguments(size=(64, 64), image=image, upscale_mode=mode, **common)
        assert of.same(arguments).shape[2:] == (12, 12)
    steps = list(of.pipe.stream(**{**arguments, "image": None}))
    assert [step.index for step in steps] == list(range(steps[0].total))
    assert [step.latents.shape[-1] for step in steps] == [8] * 2 + [12] * (len(steps) - 2)
