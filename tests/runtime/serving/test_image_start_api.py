"""Requests that start from an image: every image that of the pipeline alone; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing
from support.serving import USUAL, Site, file_of, image_call, open_pipeline, pixels_of, serve, text_of
from support.start_images import mask, photo

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROL, PHOTO, MASK = drawing(1, 24, 16), photo(2, 24, 16), mask(24, 16)


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("served") / "toy", encoder=True)


@pytest.fixture(scope="module")
def alone(encoding: Path) -> Iterator[Any]:
    with open_pipeline(encoding) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def site(encoding: Path) -> Iterator[Site]:
    with serve([encoding], ServerSettings(max_size=64, max_pixels=4096)) as made:
        yield made


def _same(text: str | None, pipe: Pipeline, **arguments: Any) -> bool:
    (made,) = pipe(**{"prompt": "a red circle", "control_image": CONTROL, **USUAL, **arguments}).images
    return np.array_equal(pixels_of(text), np.asarray(made))


def _clear(white: Image.Image) -> Image.Image:
    """A mask as OpenAI's API has it: transparent where the image is made anew."""
    made = PHOTO.convert("RGBA")
    made.putalpha(white.point(lambda value: 255 - value))
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"strength": 0.5},
        {"mask_image": MASK, "strength": 1.0},
        {"mask_image": MASK, "padding_mask_crop": 2},
        {"mask_image": MASK, "overlay": True},
        {"upscale": 2.0, "upscale_mode": "latent"},
    ],
)
def test_fields_reach_the_pipeline(site: Site, alone: Any, fields: dict[str, Any]) -> None:
    """As JSON, and as a form."""
    wanted = {"image": PHOTO, **fields}
    body = {name: value for name, value in fields.items() if name != "mask_image"}
    images = {"image": PHOTO, **({"mask": MASK} if "mask_image" in fields else {})}
    call = image_call(**body, **{name: text_of(image) for name, image in images.items()})
    answer = site.http.post(ROUTE, json=call)
    assert answer.status_code == 200, answer.text
    assert _same(answer.json()["data"][0]["b64_json"], alone, **wanted)
    form = {name: str(value) for name, value in {**USUAL, **body, "prompt": "a red circle"}.items()}
    files = {name: file_of(image) for name, image in {**images, "control_image": CONTROL}.items()}
    answer = site.http.post(EDITS, data=form, files=files)
    assert answer.status_code == 200, answer.text
    assert _same(answer.json()["data"][0]["b64_json"], alone, **wanted)


def test_openais_client_inpaints(site: Site, alone: Any) -> None:
    """Its mask is transparent where the image is made anew; an opaque one is white there."""
    for sent in (_clear(MASK), MASK.convert("RGBA")):
        answer = site.openai().images.edit(
            image=file_of(PHOTO),
            mask=file_of(sent),
            prompt="a red circle",
            extra_body={**USUAL, "control_image": text_of(CONTROL)},
        )
        assert answer.data
        assert _same(answer.data[0].b64_json, alone, image=PHOTO, mask_image=MASK)


def test_a_second_run_without_an_image(site: Site, alone: Any) -> None:
    answer = site.http.post(ROUTE, json=image_call(upscale=2, strength=0.5)).json()
    assert answer["size"] == "48x32"
    assert _same(answer["data"][0]["b64_json"], alone, upscale=2, strength=0.5)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"mask": text_of(MASK)}, "image", "mask was given without an image; set image"),
    ({"image": text_of(PHOTO), "mask": text_of(mask(16, 24))}, "mask", "give mask the size of image"),
    ({"image": text_of(PHOTO), "strength": 1.5}, "strength", "less than or equal to 1"),
    ({"image": text_of(PHOTO), "strength": 0.05}, "strength", "leaves none of 8 steps"),
    ({"image": "http://localhost/photo.png"}, "image", "image is neither base64 nor a data URL"),
    ({"upscale": 9}, "upscale", "less than or equal to 8"),
    ({"upscale": 4}, "size", "and upscale 4; this server takes at most 64"),
    (
        {"image": text_of(photo(1, 72, 16))},
        "size",
        "the image has 72 x 16 pixels; this server takes at most 64",
    ),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_refusals_name_the_field(site: Site, fields: dict[str, Any], param: str, message: str) -> None:
    error = site.refused(400, "POST", ROUTE, json=image_call(**fields))
    assert message in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "files", "param", "message"),
    [
        (
            {},
            ["image", "mask"],
            "control_image",
            "mask was given without control_image; send the control image",
        ),
        ({"strength": "0.5"}, ["image"], "control_image", "strength was given without control_image"),
        ({}, ["image", "image", "control_image"], "image", "2 files image were given; give one"),
        ({}, ["mask", "control_image"], "image", "mask was given without an image"),
    ],
)
def test_refusals_of_forms(
    site: Site, fields: dict[str, str], files: list[str], param: str, message: str
) -> None:
    content = [(name, ("file.png", file_of(PHOTO))) for name in files]
    error = site.refused(400, "POST", EDITS, data={"prompt": "a", **fields}, files=content)
    assert message in error["message"]
    assert error["param"] == param


def test_openais_client_has_its_own_errors(site: Site) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        site.openai().images.edit(image=file_of(PHOTO), mask=file_of(MASK), prompt="a")
    assert caught.value.param == "control_image"
