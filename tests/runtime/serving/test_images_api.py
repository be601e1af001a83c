"""Images by OpenAI's API: its own client against a real server, every image that of the pipeline alone."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import numpy as np
import openai
import pytest
from PIL import ExifTags, Image

from controlnext.runtime import ImagePipeline, Pipeline
from controlnext.runtime.preprocess import preprocess
from controlnext.runtime.unfinished import partial_steps
from controlnext.types import FloatArray
from support.gate import until
from support.images import drawn
from support.recipe import drawing
from support.serving import USUAL, Site, file_of, image_call, pixels_of, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROL = drawing(1, 24, 16)


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


def test_an_unfinished_image_that_takes_longer_than_the_rest_is_not_lost(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result waits for it."""
    decode = ImagePipeline.unfinished

    def slow(pipe: ImagePipeline, latents: FloatArray) -> Any:
        time.sleep(0.5)
        return decode(pipe, latents)

    monkeypatch.setattr(ImagePipeline, "unfinished", slow)
    extra = {**USUAL, "control_image": text_of(CONTROL)}
    with client.images.generate(
        prompt="a red circle", stream=True, partial_images=1, extra_body=extra
    ) as stream:
        assert [event.type for event in stream] == [
            "image_generation.partial_image",
            "image_generation.completed",
        ]


def test_the_steps_may_be_given(site: Site, alone: Pipeline) -> None:
    """As JSON, and in a form as a list that is written as JSON."""
    given = {"sampler": "euler", "timesteps": [999, 400], "num_inference_steps": None}
    body = {name: value for name, value in image_call(**given).items() if value is not None}
    answer = site.http.post(ROUTE, json=body).json()
    assert same([answer["data"][0]["b64_json"]], alone, **given)
    levels = {"sampler": "euler", "sigmas": [14.6, 3.0, 0.0]}
    form = {**{k: str(v) for k, v in USUAL.items() if k != "num_inference_steps"}, "prompt": "a red circle"}
    form |= {"sampler": "euler", "sigmas": "[14.6, 3, 0]"}
    answer = site.http.post(EDITS, data=form, files={"image": file_of(CONTROL)}).json()
    assert same([answer["data"][0]["b64_json"]], alone, **levels, num_inference_steps=None)


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
        guidance_end=0.4,
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
        guidance_end=0.4,
        sampler="dpmpp_2m",
        num_inference_steps=6,
        width=16,
        height=24,
        control_image=image,
    )


def turned() -> bytes:
    """Return a JPEG file whose image is to be turned before it is shown."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return file_of(CONTROL, "JPEG", exif=exif)


@pytest.mark.parametrize(
    "content",
    [file_of(drawn(255)), file_of(CONTROL.convert("L")), file_of(CONTROL.convert("P")), turned()],
    ids=["transparent", "grey", "palette", "turned"],
)
def test_images_are_read_as_the_pipeline_reads_them(site: Site, alone: Pipeline, content: bytes) -> None:
    text = base64.b64encode(content).decode()
    answer = site.http.post(ROUTE, json=image_call(control_image=text)).json()
    assert same([answer["data"][0]["b64_json"]], alone, control_image=Image.open(io.BytesIO(content)))


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


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_tells_what_was_made(here: Site, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    with caplog.at_level("INFO", "controlnext.runtime.serving.access_log"):
        call = image_call(n=2, stream=stream)
        assert here.http.post(ROUTE, json=call, headers={"x-request-id": "mine"}).status_code == 200
        until(lambda: bool(caplog.records))
    (record,) = caplog.records
    facts: dict[str, Any] = record.request  # type: ignore[attr-defined]
    assert facts.pop("seconds") < 30
    assert facts == {
        "method": "POST",
        "route": ROUTE,
        "status": 200,
        "model": "toy",
        "steps": 8,
        "size": "24x16",
        "images": 2,
        "rows": 4,
        "outcome": "ok",
        "request_id": "mine",
    }
    assert "circle" not in caplog.text
