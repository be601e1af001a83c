"""Requests for images that are refused: the field at fault, the errors of OpenAI's client, of streams."""

from __future__ import annotations

import json
from threading import Event
from typing import Any

import openai
import pytest

from controlnext.runtime import Pipeline
from support.recipe import drawing
from support.serving import Site, events_of, file_of, image_call, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROL = drawing(1, 24, 16)

REFUSED = [
    ({"prompt": None}, "prompt", "prompt is missing"),
    ({"control_image": None}, "control_image", "no control image was given; set control_image"),
    ({"contol_scale": 1}, "contol_scale", "did you mean control_scale?"),
    ({"ink": "x"}, "ink", "there is no field ink; accepted: model, size"),
    ({"lora": "x"}, "lora", "lora is 'x'; give a JSON object"),
    ({"n": 0}, "n", "n is 0; input should be greater than or equal to 1"),
    ({"n": True}, "n", "n is True; give a value that is neither true nor false"),
    ({"control_scale": True}, "control_scale", "neither true nor false"),
    ({"n": 5}, "n", "n is 5; this server makes at most 4"),
    ({"n": "many"}, "n", "n is 'many'"),
    ({"n": "1_0"}, "n", "n is '1_0'; write the number without _"),
    ({"control_scale": ["0_1"]}, "control_scale", "without _"),
    ({"num_inference_steps": 21}, "num_inference_steps", "this server takes at most 20"),
    ({"timesteps": [*range(21)]}, "timesteps", "timesteps has 21 values; this server takes at most 20"),
    ({"timesteps": [9, -1]}, "timesteps", "greater than or equal to 0"),
    ({"timesteps": [9, 8]}, "timesteps", "num_inference_steps and timesteps were given"),
    ({"sigmas": [1], "num_inference_steps": None, "sampler": "euler"}, "sigmas", "at least 2"),
    ({"size": "72x16"}, "size", "size is 72x16; this server takes at most 64"),
    ({"size": "17x16"}, "size", "width is 17; height and width must be multiples of 8"),
    ({"size": "big"}, "size", "size is 'big'; give width x height in pixels, such as 512x512, or auto"),
    ({"sampler": "none"}, "sampler", "unknown sampler 'none'"),
    ({"preprocess": "tile"}, "size", "the image has 96 x 64 pixels; this server takes at most 64"),
    ({"preprocess": "softedge"}, "preprocess", "'softedge' cannot be used here (no model is given"),
    ({"preprocess": "edges"}, "preprocess", "unknown preprocessor 'edges'; accepted: canny"),
    ({"control_scale": [1, 2]}, "control_scale", "control_scale has shape"),
    ({"control_start": 0.8, "control_end": 0.2}, "control_end", "above control_start, which is 0.8"),
    ({"cache_interval": 0}, "cache_interval", "greater than or equal to 1"),
    ({"cache_interval": 2}, "cache_interval", "the bundle has no shallow graph of unet"),
    ({"guidance_end": 1.5}, "guidance_end", "less than or equal to 1"),
    ({"control_image": [text_of(CONTROL)] * 2}, "control_image", "2 control images were given"),
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
        ({}, ["image", "mask"], "control_image", "mask was given without control_image"),
        ({"image": "control.png"}, [], "image", "image is text; send it as a file"),
        ({}, [], "image", "no control image was given; set image"),
        ({}, ["image", "prompt"], "prompt", "prompt is a file; send it as text"),
        (
            {"control_image": "x"},
            ["image"],
            "control_image",
            "control_image is neither base64 nor a data URL",
        ),
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


def test_an_error_within_a_stream_is_an_event(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Event()

    def fail(*_arguments: object, **_options: object) -> None:
        assert answered.wait(10)
        raise RuntimeError("secret")

    monkeypatch.setattr(Pipeline, "decode", fail)
    call = image_call(stream=True, n=1)
    with here.http.stream("POST", ROUTE, json=call) as response:
        assert response.status_code == 200
        answered.set()
        (event,) = events_of(response)
    assert event["error"]["code"] == "internal_error"
    assert response.headers["x-request-id"] in event["error"]["message"]
    assert "secret" not in str(event)
    with pytest.raises(openai.APIError, match="the server failed"):
        list(here.openai().images.generate(prompt="a", stream=True, extra_body=image_call()))


def test_a_clip_of_a_server_of_images(site: Site) -> None:
    """What no file would help is said before a file is asked for."""
    error = site.refused(400, "POST", "/v1/videos", data={"prompt": "a cat"}, files=[("n", ("", b""))])
    assert error["message"] == "no model makes clips"
