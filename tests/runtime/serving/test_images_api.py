"""Images by OpenAI's API: its own client against a real server, every image that of the pipeline alone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.preprocess import preprocess
from controlnext.runtime.serving.image_work import partial_steps
from controlnext.runtime.serving.settings import ServerSettings
from support.images import drawn
from support.recipe import drawing
from support.serving import USUAL, Site, events_of, file_of, image_call, pixels_of, serve, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROL = drawing(1, 24, 16)


@pytest.fixture(scope="module")
def site(toy: Path) -> Iterator[Site]:
    with serve([toy], ServerSettings(max_steps=20, max_size=64, max_images=4, max_pixels=128 * 128)) as site:
        yield site


@pytest.fixture(scope="module")
def client(site: Site) -> openai.OpenAI:
    return site.openai()


def same(images: Any, pipe: Pipeline, **arguments: Any) -> bool:
    """Whether images in base64 are those of the pipeline's call with these arguments."""
    made = pipe(**{"prompt": "a red circle", "control_image": CONTROL, **USUAL, **arguments}).images
    assert len(images) == len(made)
    return all(np.array_equal(pixels_of(image), made[index]) for index, image in enumerate(images))


def test_openais_client_makes_images(client: openai.OpenAI, alone: Pipeline) -> None:
    extra = {**USUAL, "control_image": text_of(CONTROL)}
    answer = client.images.generate(prompt="a red circle", model="toy", n=2, extra_body=extra)
    assert answer.data
    assert same([image.b64_json for image in answer.data], alone, num_images_per_prompt=2)
    assert (answer.size, answer.output_format, answer.background) == ("24x16", "png", "opaque")
    assert answer.seed == 5  # type: ignore[attr-defined]
    assert not same([answer.data[1].b64_json], alone)


def test_openais_client_edits_images(client: openai.OpenAI, alone: Pipeline) -> None:
    extra = {**USUAL, "control_scale": 0.5}
    answer = client.images.edit(
        image=file_of(CONTROL),
        prompt="a red circle",
        size="48x32",
        extra_body=extra,  # type: ignore[call-overload]
    )
    assert same([answer.data[0].b64_json], alone, control_scale=0.5, width=48, height=32)


@pytest.mark.parametrize("route", ["generate", "edit"])
def test_openais_client_streams_partial_images(client: openai.OpenAI, alone: Pipeline, route: str) -> None:
    given = {"generate": {}, "edit": {"image": file_of(CONTROL)}}[route]
    extra = {**USUAL, **({} if given else {"control_image": text_of(CONTROL)})}
    call = getattr(client.images, route)
    kind = {"generate": "image_generation", "edit": "image_edit"}[route]
    with call(prompt="a red circle", n=2, stream=True, partial_images=1, extra_body=extra, **given) as stream:
        *partial, first, second = stream
    assert {event.type for event in partial} == {f"{kind}.partial_image"}
    assert [(event.partial_image_index, event.image_index) for event in partial] == [(0, 0), (0, 1)]
    assert [event.type for event in (first, second)] == [f"{kind}.completed"] * 2
    assert same([first.b64_json, second.b64_json], alone, num_images_per_prompt=2)
    steps = list(alone.stream("a red circle", control_image=CONTROL, num_images_per_prompt=2, **USUAL))
    expected = alone.decode(steps[3].latents)
    assert all(np.array_equal(pixels_of(event.b64_json), expected[event.image_index]) for event in partial)
    assert first.usage.total_tokens == 0


def test_partial_images_are_spread_over_the_steps() -> None:
    assert partial_steps(10, 3) == {1: 0, 4: 1, 6: 2}
    assert partial_steps(4, 8) == {0: 0, 1: 1, 2: 2}
    assert partial_steps(1, 3) == {}


def test_openais_client_lists_models(client: openai.OpenAI, alone: Pipeline) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("toy", "model", "controlnext")
    assert model.controlnext == {  # type: ignore[attr-defined]
        "task": "image",
        "family": "sdxl",
        "samplers": list(alone.family.samplers),
        "default_steps": 20,
        "default_guidance": 5.0,
        "controls": 1,
        "size": "64x64",
    }
    assert client.models.retrieve("toy") == model
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'; accepted: toy"):
        client.models.retrieve("other")


def test_all_fields_reach_the_pipeline(site: Site, alone: Pipeline) -> None:
    call = image_call(
        negative_prompt="blue",
        guidance_scale=3,
        control_scale=[1.5],
        control_start=0.1,
        control_end=0.9,
        sampler="dpmpp_2m",
        num_inference_steps=6,
        size="16x24",
        control_image="data:image/webp;base64," + text_of(CONTROL.resize((48, 32)), "WEBP"),
    )
    answer = site.http.post(ROUTE, json=call).json()
    image = Image.open(io.BytesIO(base64.b64decode(call["control_image"].partition(",")[2])))
    assert same(
        [answer["data"][0]["b64_json"]],
        alone,
        negative_prompt="blue",
        guidance_scale=3,
        control_scale=1.5,
        control_start=0.1,
        control_end=0.9,
        sampler="dpmpp_2m",
        num_inference_steps=6,
        width=16,
        height=24,
        control_image=image,
    )


@pytest.mark.parametrize("image", [drawn(255), CONTROL.convert("L"), CONTROL.convert("P")])
def test_images_of_any_mode_are_read_as_the_pipeline_reads_them(
    site: Site, alone: Pipeline, image: Image.Image
) -> None:
    answer = site.http.post(ROUTE, json=image_call(control_image=text_of(image))).json()
    opened = Image.open(io.BytesIO(file_of(image)))
    assert same([answer["data"][0]["b64_json"]], alone, control_image=opened)


def test_a_preprocessor(site: Site, alone: Pipeline) -> None:
    answer = site.http.post(ROUTE, json=image_call(preprocess="canny")).json()
    assert same([answer["data"][0]["b64_json"]], alone, control_image=preprocess("canny", CONTROL))


def test_what_is_left_out(site: Site, alone: Pipeline) -> None:
    """The seed is random and told; OpenAI's fields that change nothing are accepted."""
    call = image_call(
        seed=None, num_inference_steps=None, sampler=None, size="auto", quality="high", user="me"
    )
    seeds = set()
    for _ in range(2):
        answer = site.http.post(ROUTE, json=call).json()
        seeds.add(answer["seed"])
        arguments = {"seed": answer["seed"], "num_inference_steps": 20, "sampler": None}
        assert same([answer["data"][0]["b64_json"]], alone, **arguments)
    assert len(seeds) == 2


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats(site: Site, format: str) -> None:
    call = image_call(output_format=format, output_compression=None if format == "png" else 50)
    answer = site.http.post(ROUTE, json=call).json()
    assert answer["output_format"] == format
    with Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))) as image:
        assert (image.format, image.size) == (format.upper(), (24, 16))


def test_a_form_with_lists_and_empty_fields(site: Site, alone: Pipeline) -> None:
    form = {**USUAL, "prompt": "a red circle", "control_scale": "[0.5]", "size": "", "negative_prompt": ""}
    files = [("image[]", ("control.png", file_of(CONTROL)))]
    answer = site.http.post(EDITS, data=form, files=files)
    assert same([answer.json()["data"][0]["b64_json"]], alone, control_scale=0.5, negative_prompt=""), (
        answer.text
    )


REFUSED = [
    ({"prompt": None}, "prompt", "prompt is missing"),
    ({"control_image": None}, "control_image", "no control image was given; set control_image"),
    ({"contol_scale": 1}, "contol_scale", "did you mean control_scale?"),
    ({"lora": "x"}, "lora", "there is no field lora; accepted: model, size"),
    ({"n": 0}, "n", "n is 0; input should be greater than or equal to 1"),
    ({"n": 5}, "n", "n is 5; this server makes at most 4"),
    ({"n": "many"}, "n", "n is 'many'"),
    ({"num_inference_steps": 21}, "num_inference_steps", "this server takes at most 20"),
    ({"size": "72x16"}, "size", "size is 72x16; this server takes at most 64"),
    ({"size": "17x16"}, "size", "width is 17; height and width must be multiples of 8"),
    ({"size": "big"}, "size", "size is 'big'"),
    ({"sampler": "none"}, "sampler", "unknown sampler 'none'"),
    ({"preprocess": "none"}, "preprocess", "unknown preprocessor 'none'; accepted: canny"),
    ({"control_scale": [1, 2]}, "control_scale", "control_scale has shape"),
    ({"control_start": 0.8, "control_end": 0.2}, "control_end", "give 0 <= control_start < control_end"),
    ({"control_image": [text_of(CONTROL)] * 2}, "control_image", "2 control images were given"),
    ({"prompt": "\ud800"}, "prompt", "unable to parse raw data as a unicode string"),
    ({"response_format": "url"}, "response_format", "give b64_json"),
    ({"background": "transparent"}, "background", "images are opaque"),
    ({"output_compression": 50}, "output_compression", "which png does not have"),
    ({"partial_images": 2}, "partial_images", "set stream"),
    ({"seed": 2**64}, "seed", "seed is 1844"),
]


@pytest.mark.parametrize(("changes", "param", "message"), REFUSED)
def test_refusals_name_the_field(site: Site, changes: dict[str, Any], param: str, message: str) -> None:
    fields = {**image_call(), **changes}
    body = json.dumps({name: value for name, value in fields.items() if value is not None})
    headers = {"Content-Type": "application/json"}
    error = site.refused(400, "POST", ROUTE, content=body, headers=headers)
    assert message in error["message"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("form", "files", "param", "message"),
    [
        ({}, ["image", "mask"], "mask", "this server does not inpaint"),
        ({"image": "control.png"}, [], "image", "image is text; send it as a file"),
        ({}, [], "image", "no control image was given; set image"),
        ({}, ["image", "prompt"], "prompt", "prompt is a file; send it as text"),
        ({"control_image": "x"}, ["image"], "control_image", "there is no field control_image"),
        ({"control_scale": "[1"}, ["image"], "control_scale", "control_scale"),
    ],
)
def test_refusals_of_forms(
    site: Site, form: dict[str, str], files: list[str], param: str, message: str
) -> None:
    content = [(name, ("file.png", file_of(CONTROL))) for name in files] or [("", ("", b""))]
    error = site.refused(400, "POST", EDITS, data={"prompt": "a", **form}, files=content)
    assert message in error["message"]
    assert error["param"] == param


def test_openais_client_has_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", size="1x1", extra_body={"control_image": text_of(CONTROL)})
    assert caught.value.param == "size"
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt="a", model="other")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    # a mistake that shows before the first step is no event of the stream
    with pytest.raises(openai.BadRequestError, match="unknown sampler"):
        client.images.generate(
            prompt="a",
            stream=True,
            extra_body={"control_image": text_of(CONTROL), "sampler": "none"},
        )


def test_an_error_within_a_stream_is_an_event(
    site: Site, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "decode", _fail)
    call = image_call(stream=True, n=1)
    with site.http.stream("POST", ROUTE, json=call) as response:
        assert response.status_code == 200
        (event,) = events_of(response)
    assert event["error"]["code"] == "internal_error"
    assert response.headers["x-request-id"] in event["error"]["message"]
    assert "secret" not in str(event)
    with pytest.raises(openai.APIError, match="the server failed"):
        list(client.images.generate(prompt="a", stream=True, extra_body=image_call()))


def _fail(*_arguments: object, **_options: object) -> None:
    raise RuntimeError("secret")
