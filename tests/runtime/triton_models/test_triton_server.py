"""A real Triton Inference Server with written models: its images are those of the pipeline."""

from __future__ import annotations

import io
import json
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.triton.repository import write_model
from controlnext.runtime.triton.settings import TritonSettings
from support.gate import until
from support.recipe import drawing
from support.serving import events_of, file_of, image_call, open_pipeline, pixels_of
from support.triton_server import find_server, triton_server

SETTINGS = TritonSettings(device="cpu", threads=1)
ONE = replace(SETTINGS, max_rows=1, max_waiting=0, max_steps=250)
LONG = {"num_inference_steps": 250, "width": 1024, "height": 1024, "num_images": 4, "partial_images": 99}
"""A request that takes many seconds."""


@pytest.fixture(scope="module")
def server(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client of a server with a decoupled model, ``toy``, one that is not, ``once``, and one that
    takes only one request at a time, ``one``."""
    find_server()
    scratch = tmp_path_factory.mktemp("server")
    repository = scratch / "repository"
    write_model(toy, repository, SETTINGS)
    write_model(toy, repository, SETTINGS, name="once", decoupled=False)
    write_model(toy, repository, ONE, name="one")
    with triton_server(repository, scratch) as client:
        yield client


@pytest.fixture(scope="module")
def alone(toy: Path) -> Iterator[Pipeline]:
    with open_pipeline(toy) as pipe:
        yield pipe


def _expected(alone: Pipeline, **changes: Any) -> list[np.ndarray]:
    call = {**image_call(), "control_image": drawing(1, 24, 16), **changes}
    return [np.asarray(image) for image in alone(**call).images]


NAMES = ("seed", "sampler", "guidance_scale", "num_inference_steps", "control_scale")
CALLS = [
    dict(zip(NAMES, values, strict=True))
    for values in [
        (0, "ddim", 3.0, 4, 0.7),
        (1, "ddpm", 1.0, 5, 0.3),
        (8, "euler", 1.0, 8, 1.0),
        (33, "euler_a", 1.0, 4, 0.9),
        (4, "unipc", 1.0, 6, 0.1),
        (5, "dpmpp_2m", 3.0, 4, 0.0),
    ]
]
"""Calls with images that are neither black nor white."""


@pytest.mark.parametrize("model", ["toy", "once"])
def test_requests_at_once_have_the_images_that_the_pipeline_makes_of_each(
    server: httpx.Client, alone: Pipeline, model: str
) -> None:
    """Each with its own seed, steps, sampler, guidance and control scale."""

    def ask(call: dict[str, Any]) -> httpx.Response:
        return server.post(f"/v2/models/{model}/generate", json=image_call(**call))

    with ThreadPoolExecutor(len(CALLS)) as beside:
        responses = list(beside.map(ask, CALLS))
    for call, response in zip(CALLS, responses, strict=True):
        assert response.status_code == 200, response.text
        assert response.json()["seed"] == call["seed"]
        (expected,) = _expected(alone, **call)
        np.testing.assert_array_equal(pixels_of(response.json()["image"]), expected)
        assert expected.std() > 1


def test_unfinished_images_come_before_the_finished_ones(server: httpx.Client, alone: Pipeline) -> None:
    call = image_call(partial_images=2, num_images=2)
    with server.stream("POST", "/v2/models/toy/generate_stream", json=call) as response:
        events = list(events_of(response))
    assert [event["index"] for event in events] == list(range(len(events)))
    assert [event["partial"] for event in events] == [True] * (len(events) - 1) + [False]
    assert len(events) in (2, 3)
    expected = _expected(alone, num_images_per_prompt=2)
    for text, pixels in zip(events[-1]["image"], expected, strict=True):
        np.testing.assert_array_equal(pixels_of(text), pixels)
    assert not np.array_equal(pixels_of(events[0]["image"][0]), expected[0])


def test_plain_inference_takes_and_gives_files(server: httpx.Client, alone: Pipeline) -> None:
    """With Triton's binary tensors, without base64, for the model that answers once."""
    file = file_of(drawing(1, 24, 16))
    contents = struct.pack("<I", len(file)) + file
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": ["a red circle"]},
        {"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [3]},
        {
            "name": "control_image",
            "datatype": "BYTES",
            "shape": [1, 1],
            "parameters": {"binary_data_size": len(contents)},
        },
    ]
    outputs = [{"name": "image", "parameters": {"binary_data": True}}, {"name": "seed"}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = server.post("/v2/models/once/infer", content=head + contents, headers=headers)
    assert response.status_code == 200, response.text
    answer = response.content[int(response.headers["Inference-Header-Content-Length"]) :]
    assert len(answer) == 4 + struct.unpack("<I", answer[:4])[0]
    with Image.open(io.BytesIO(answer[4:])) as image:
        pixels = np.asarray(image)
    call = {"prompt": "a red circle", "seed": 3, "control_image": drawing(1, 24, 16)}
    np.testing.assert_array_equal(pixels, np.asarray(alone(**call).images[0]))


@pytest.mark.parametrize(
    ("model", "call", "words"),
    [
        ("toy", image_call(sampler="best"), "unknown sampler 'best'"),
        ("toy", image_call(num_steps=4), "there is no input num_steps"),
        ("toy", image_call(control_image="/etc/passwd"), "paths are not opened"),
        ("once", image_call(partial_images=2), "this model answers each request once"),
        ("once", {"prompt": ["a", "b"]}, "prompt has shape (2, 1)"),
        ("once", {"prompt": "a"}, "no control image was given; set control_image"),
    ],
)
def test_what_is_wrong_is_one_line(
    server: httpx.Client, model: str, call: dict[str, Any], words: str
) -> None:
    response = server.post(f"/v2/models/{model}/generate", json=call)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_a_client_that_leaves_makes_room(server: httpx.Client) -> None:
    """A model with room for one request refuses a second one, until the first one's client has left.

    Over HTTP Triton notices that when it sends a response, here an unfinished image.
    """
    route = "/v2/models/one/generate"
    body = json.dumps(image_call(**LONG)).encode()
    head = f"POST {route}_stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((server.base_url.host, server.base_url.port)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: server.get("/v2/models/one/stats").json()["model_stats"][0]["execution_count"] == 1)
        refused = server.post(route, json=image_call())
    assert "repeat the request later" in refused.json().get("error", ""), refused.text
    until(lambda: server.post(route, json=image_call()).status_code == 200)
