"""Clients of a server: requests, arrivals at random moments, and clients that leave."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from batching import PROMPTS, outline

START_S = 120.0
ROUTE = "/v1/images/generations"
Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer: the status, the seconds to its first event and to its end, and the image."""

    status: int
    first: float
    last: float
    image: bytes = b""
    retry_after: str | None = None


def body(number: int, side: int, steps: tuple[int, int] = (4, 50), **changes: Any) -> Body:
    """Return a random request."""
    chance, content = random.Random(number), io.BytesIO()
    outline(side, number).save(content, "PNG")
    return {
        "prompt": chance.choice(PROMPTS),
        "control_image": base64.b64encode(content.getvalue()).decode(),
        "control_scale": round(chance.uniform(0, 1.5), 3),
        "num_inference_steps": chance.randint(*steps),
        "guidance_scale": chance.choice([1.0, 3.0, 5.0]),
        "seed": number,
        **changes,
    }


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a bundle in the block; yield the address and the process."""
    command = [sys.executable, "-m", "controlnext", "serve", str(bundle), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = next((text for text in process.stdout if "http://" in text), "")
            if not line:
                raise SystemExit("the server did not start")
            address = "http://" + line.partition("http://")[2].split()[0]
            until = time.monotonic() + START_S
            while not _is_ready(address) and time.monotonic() < until:
                time.sleep(0.1)
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready").is_success
    except httpx.TransportError:
        return False


async def ask(client: httpx.AsyncClient, request: Body) -> Reply:
    """Send a request and read its answer to the end."""
    started = time.perf_counter()
    async with client.stream("POST", ROUTE, json=request) as response:
        first, image = 0.0, b""
        if not request.get("stream"):
            content = await response.aread()
            first = time.perf_counter()
            if response.is_success:
                image = base64.b64decode(json.loads(content)["data"][0]["b64_json"])
        async for event in _events(response):
            first = first or time.perf_counter()
            image = base64.b64decode(event.get("b64_json", ""))
        return Reply(
            response.status_code,
            first - started,
            time.perf_counter() - started,
            image,
            response.headers.get("retry-after"),
        )


async def _events(response: httpx.Response) -> AsyncIterator[Body]:
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


async def send(address: str, requests: Sequence[Body], rate: float) -> list[Reply]:
    """Send ``requests`` at ``rate`` a second, at random moments; all at once if the rate is 0."""
    chance = random.Random(1)
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        tasks = []
        for request in requests:
            if rate:
                await asyncio.sleep(chance.expovariate(rate))
            tasks.append(group.create_task(ask(client, request)))
    return [task.result() for task in tasks]


async def send_in_turn(address: str, requests: Sequence[Body]) -> list[Reply]:
    """Send each of the ``requests`` when the one before is answered, over one connection."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        return [await ask(client, request) for request in requests]


async def leave(address: str, requests: Sequence[Body], longest: float) -> None:
    """Send requests that disconnect at a random moment of the first ``longest`` seconds."""
    chance = random.Random(2)

    async def one(client: httpx.AsyncClient, request: Body, patience: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(ask(client, request), patience)

    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        work: list[Awaitable[None]] = [one(client, r, chance.uniform(0, longest)) for r in requests]
        await asyncio.gather(*work)


def metric(address: str, name: str) -> float:
    """Return the sum of a metric's values over its labels."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
