"""A real server on loopback, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import uvicorn
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.access_log import AccessLog
from controlnext.runtime.serving.app import make_app
from controlnext.runtime.serving.connections import http_config
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.server import address_of, open_listener
from controlnext.runtime.serving.settings import ServerSettings
from support.gate import until
from support.recipe import drawing

USUAL = {"num_inference_steps": 8, "sampler": "ddim", "seed": 5}
"""Arguments with which the fake bundle makes an image that is neither black nor white."""

KEYS = ("first-key", "second-key")
"""Keys of the servers that have some; the second one is sent unless a test says otherwise."""

open_pipeline = partial(Pipeline.load, device="cpu", threads=1, cache=False)


@dataclass(frozen=True)
class Site:
    """A server that runs: its address, its models and the event loop they belong to, its application.

    ``pid``: its process, if that is one of its own.
    """

    address: str
    models: Models
    loop: asyncio.AbstractEventLoop
    app: Any
    http: httpx.Client
    pid: int = 0

    def openai(self, key: str = KEYS[1]) -> openai.OpenAI:
        """Return a client that does not repeat requests."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)

    def refused(self, status: int, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Make a request that is answered with an error of this status; return the error's fields."""
        return error_of(self.http.request(method, path, **options), status)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the fields of the error in an answer of this status."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    assert "\n" not in error["message"]
    return error


@contextmanager
def serve(
    bundles: Sequence[Path],
    settings: ServerSettings = ServerSettings(),  # noqa: B008
    load: Callable[[Path], Pipeline] = open_pipeline,
) -> Iterator[Site]:
    """Serve bundles; the first one is loaded before the block begins."""
    metrics, listener = Metrics(), open_listener("127.0.0.1", 0)
    models = Models(bundles, settings, load, metrics)
    app = make_app(models, settings, metrics, local=True)
    # a test that failed in the middle of an answer may keep its connection: the end does not wait for it
    server = uvicorn.Server(http_config(AccessLog(app, metrics), grace=10))
    loop = asyncio.new_event_loop()

    async def run() -> None:
        await models.start()
        await server.serve(sockets=[listener])
        await models.close()

    thread = threading.Thread(target=loop.run_until_complete, args=[run()], daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        address = address_of(listener)
        with connected(address) as client:
            yield Site(address, models, loop, app, client)
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive(), "the server does not end"
        loop.close()
        listener.close()


def connected(address: str) -> httpx.Client:
    """Return a client of a server, which shows its key if it is asked for one."""
    return httpx.Client(base_url=address, timeout=30, headers={"Authorization": f"Bearer {KEYS[1]}"})


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return an image as a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def text_of(image: Image.Image, format: str = "PNG") -> str:
    """Return an image as base64."""
    return base64.b64encode(file_of(image, format)).decode()


def pixels_of(text: str | None) -> np.ndarray:
    """Return the pixels of an image in base64."""
    assert text
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert("RGB"))


def image_call(**changes: Any) -> dict[str, Any]:
    """Return the fields of a small request for an image."""
    usual = {
        "prompt": "a red circle",
        "control_image": text_of(drawing(1, 24, 16)),
        **USUAL,
    }
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def events_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the data of server-sent events."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
