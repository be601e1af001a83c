"""The phase of the soak test with a server in this process, on loopback."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
from batching import outline
from load import ROUTE, Body, body
from PIL import Image
from serving import arguments_of
from soak_bundles import Subject, support
from soak_calls import open_subject

from controlnext.runtime.serving.settings import ServerSettings

CLIENTS = 4
KINDS = 12
"""Different requests."""
SIDE = 64
VIDEOS = "/v1/videos"


def served(images: Subject, clips: Subject, count: int, threads: int | None) -> Iterator[bool]:
    """Send ``count`` requests for images from some clients, and one for a clip with every 20th; with every
    10th one that is refused, and one that leaves."""
    with open_subject(images, threads=threads) as pipe:
        requests, calls = zip(*(_request(number, pipe) for number in range(KINDS)), strict=True)
        wanted = [_pixels(pipe(**call).images[0]) for call in calls]
    folder = next((str(path.parent) for path in images.loras.values()), None)
    settings = ServerSettings(max_waiting=4 * CLIENTS, loras=folder)
    bundles = [images.bundle, clips.bundle]
    with support("serving").serve(bundles, settings) as site, ThreadPoolExecutor(CLIENTS) as pool:
        for start in range(0, count, CLIENTS):
            numbers = range(start, min(start + CLIENTS, count))
            kinds = [number % KINDS for number in numbers]
            answers = list(pool.map(lambda kind: _ask(site.http, requests[kind]), kinds))
            fine = _between(site, requests[0], numbers, clips.bundle.name)
            for kind, answer in zip(kinds, answers, strict=True):
                yield fine and answer is not None and _are_near(answer, wanted[kind])


def _request(number: int, pipe: Any) -> tuple[Body, dict[str, Any]]:
    """Return a request, and the call of the pipeline that it stands for."""
    request = body(number, SIDE, steps=(2, 5))
    if pipe.loras:
        request["lora"] = {next(iter(pipe.loras)): 0.5}
    call = arguments_of(request)
    if len(pipe.controls) > 1:
        for fields in (request, call):
            fields["control_image"] = [fields["control_image"]] * len(pipe.controls)
    return {**request, "model": pipe.bundle.path.name}, call


def _ask(client: httpx.Client, request: Body) -> np.ndarray | None:
    answer = client.post(ROUTE, json=request)
    if answer.status_code != httpx.codes.OK:
        return None
    return _pixels(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))


def _between(site: Any, request: Body, numbers: Sequence[int], clips: str) -> bool:
    """Do what comes between the requests ``numbers``; return whether it went as it should."""
    fine = True
    if any(number % 10 == 0 for number in numbers):
        bad = {**request, "num_inference_steps": 0}
        fine = site.http.post(ROUTE, json=bad).status_code == httpx.codes.BAD_REQUEST
        with suppress(httpx.TimeoutException), httpx.Client(base_url=site.address, timeout=0.05) as hasty:
            hasty.post(ROUTE, json={**request, "num_inference_steps": 50})
    if any(number % 20 == 0 for number in numbers):
        fine = fine and _makes_clip(site.http, clips)
    return fine


def _makes_clip(client: httpx.Client, model: str) -> bool:
    """Ask for a clip, wait for it, fetch and remove it; return whether it is there and then gone."""
    frames = [("control_clip", (f"{number}.png", _png(number))) for number in range(2)]
    files = [("input_reference", ("image.png", _png(9))), *frames]
    job = client.post(VIDEOS, files=files, data={"model": model, "num_inference_steps": 1}).json()
    address = f"{VIDEOS}/{job['id']}"
    while (job := client.get(address).json())["status"] in ("queued", "in_progress"):
        time.sleep(0.05)
    content = client.get(f"{address}/content")
    client.delete(address)
    gone = client.get(address).status_code == httpx.codes.NOT_FOUND
    return bool(job["status"] == "completed" and content.is_success and len(content.content) > 100 and gone)


def _png(number: int) -> bytes:
    content = io.BytesIO()
    outline(SIDE, number).save(content, "PNG")
    return content.getvalue()


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.int16)


def _are_near(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether no level differs by more than one: sharing runs changes the last bits."""
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1)
