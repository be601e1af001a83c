"""Arguments of image prompts: what they mean for the rows of a batch, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from controlnext.errors import InputError
from controlnext.runtime import Pipeline, Request
from controlnext.runtime.image_prompts import ImagePrompts, prompt_pixels
from support.fake_bundle import write_fake_bundle
from support.fake_prompts import colours, write_fake_prompts
from support.recipe import drawing


@pytest.fixture(scope="module", params=[1, 2])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = write_fake_prompts(tmp_path_factory.mktemp("prompts") / "bundle", request.param)
    with Pipeline.load(directory, device="cpu", cache=False) as pipe:
        yield pipe


def feed(pipe: Pipeline, guided: bool = False, prompts: int = 1, **arguments: Any) -> dict[str, np.ndarray]:
    request = Request(prompt=["a"] * prompts, control_image=drawing(1, 24, 16), **arguments)
    return ImagePrompts(pipe.bundle)(request, guided).feed


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (8, 8), (7, 300)])
def test_pixels_are_those_of_the_image_processor_of_diffusers(size: tuple[int, int]) -> None:
    image = colours(1, *size)
    processor = CLIPImageProcessorPil(size=28, crop_size=28)
    wanted = processor(image, return_tensors="np").pixel_values
    np.testing.assert_allclose(prompt_pixels(image, 28), wanted, atol=1e-6)


def test_no_image_is_zeros_at_scale_0(pipe: Pipeline) -> None:
    found = feed(pipe, guided=True, prompts=3)
    assert found["ip_adapter_image_embeds"].shape == (6, 1, 3)
    assert not any(array.any() for array in found.values())


def test_scales_are_of_rows_and_adapters(pipe: Pipeline) -> None:
    count = len(pipe.bundle.manifest.graphs["unet"].adapters)
    images: Any = [colours(n) for n in range(count)]
    scales: Any = [[0.5, 0.25], 2.0][:count]
    found = feed(pipe, True, 2, ip_adapter_image=images, ip_adapter_scale=scales, num_images_per_prompt=2)
    wanted = np.array([[0.5, 2.0], [0.5, 2.0], [0.25, 2.0], [0.25, 2.0]] * 2)[:, :count]
    np.testing.assert_array_equal(found["ip_adapter_scale"], wanted)
    embeds = found["ip_adapter_image_embeds"]
    assert not embeds[:4].any()
    means = prompt_pixels(images[0], 8).mean((2, 3))
    np.testing.assert_allclose(embeds[4:, 0], means.repeat(4, 0), atol=1e-5)


def test_each_prompt_may_have_its_own_images(pipe: Pipeline) -> None:
    count = len(pipe.bundle.manifest.graphs["unet"].adapters)
    own = [[colours(1), colours(2)], [colours(3), colours(4)]]
    given: Any = own if count == 1 else [own, None]
    found = feed(pipe, prompts=2, ip_adapter_image=given)
    assert found["ip_adapter_image_embeds"].shape == (2, 2, 3)
    assert not np.array_equal(*found["ip_adapter_image_embeds"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "scale": ({"ip_adapter_scale": [[1.0, 2.0, 3.0]]}, "ip_adapter_scale has shape (3,) for 1 prompts"),
    "not a number": ({"ip_adapter_scale": "x"}, "ip_adapter_scale is 'x'; give numbers"),
    "not an image": ({"ip_adapter_image": ["x.png"]}, "the image is of type str"),
    "none": ({"ip_adapter_image": [[]]}, "ip_adapter_image has no image"),
    "prompts": (
        {"ip_adapter_image": [[[colours(1)], [colours(2)]]]},
        "ip_adapter_image has images of 2 prompts for 1 prompts",
    ),
    "embeds": ({"ip_adapter_image_embeds": [np.zeros((1, 1, 4))]}, "expected (1, images, 3)"),
}


@pytest.mark.parametrize("title", WRONG)
def test_what_does_not_fit_is_refused(title: str, tmp_path: Path) -> None:
    given, message = WRONG[title]
    with (
        Pipeline.load(write_fake_prompts(tmp_path / "bundle"), device="cpu", cache=False) as pipe,
        pytest.raises(InputError) as caught,
    ):
        feed(pipe, **given)
    assert message in str(caught.value)
    assert caught.value.argument == next(iter(given))


def test_as_many_as_there_are_adapters(tmp_path: Path) -> None:
    with (
        Pipeline.load(write_fake_prompts(tmp_path / "two", 2), device="cpu", cache=False) as two,
        pytest.raises(InputError, match="has 2 IP-Adapters; ip_adapter_image must be a list of 2 entries"),
    ):
        feed(two, ip_adapter_image=colours(1))
    with pytest.raises(InputError, match="ip_adapter_image and ip_adapter_image_embeds were given"):
        Request(prompt="a", ip_adapter_image=colours(1), ip_adapter_image_embeds=np.zeros(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ip_adapter_image": colours(1)}, "ip_adapter_image was given, but the bundle has no IP-Adapter"),
        ({"ip_adapter_scale": 0.5}, "ip_adapter_scale was given, but the bundle has no IP-Adapter"),
        ({"ip_adapter_scale": [1.0, 0.2]}, "ip_adapter_scale was given, but the bundle has no IP-Adapter"),
        ({"ip_adapter_scale": "high"}, "ip_adapter_scale is 'high'; give numbers"),
        ({"ip_adapter_scale": 1.0}, ""),
    ],
)
def test_a_bundle_without_adapters(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with Pipeline.load(write_fake_bundle(tmp_path / "none"), device="cpu", cache=False) as none:
        if not message:
            assert not feed(none, **given)
            return
        with pytest.raises(InputError, match=message):
            feed(none, **given)
