"""Send random requests to a running server and measure waiting, throughput, memory and what gets lost.

    controlnext-export --model sdxl ... --output build/shapes-fp32
    python benchmarks/serving.py build/shapes-fp32

Starts `controlnext serve` on loopback and prints a Markdown table. Requests arrive at random moments with 4
to 50 steps; the first partial image is the first of three. The same requests are sent to a server
that does one request at a time (--max-rows 1). On a processor a batch computes no faster than its rows one by
one, so what sharing steps gains there is waiting time, not throughput.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from batching import row
from load import Body, body, leave, metric, send, served
from PIL import Image

from controlnext.runtime import ImagePipeline

PARTIAL_IMAGES = 3


def percentile_95(values: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return float(np.percentile(values, 95))


def measure_waiting(bundle: Path, side: int, count: int) -> tuple[str, str]:
    """Return the 95th percentiles of the time to the first partial image, of both servers, and their ratio.

    Both get the same requests at 0.8 of the rate that one request at a time can serve.
    """
    requests = [body(i, side, stream=True, partial_images=PARTIAL_IMAGES) for i in range(count)]
    with ImagePipeline.load(bundle) as pipe:
        calls = [arguments_of(request) for request in requests]
        pipe(**calls[0])
        started = time.perf_counter()
        for call in calls[: max(count // 4, 1)]:
            pipe(**call)
        rate = 0.8 * max(count // 4, 1) / (time.perf_counter() - started)
    found = []
    for options in (["--max-rows", "1"], []):
        with served(bundle, *options, "--queue", str(count)) as (address, _):
            answers = asyncio.run(send(address, requests, rate))
        assert all(answer.status == 200 for answer in answers)
        found.append(percentile_95([answer.first for answer in answers]))
    return f"{found[1]:.2f} s against {found[0]:.2f} s at {rate:.1f} requests/s", f"{found[1] / found[0]:.2f}"


def arguments_of(request: Body) -> dict[str, Any]:
    """Return the arguments of the call of a pipeline that a request stands for."""
    known = {name: value for name, value in request.items() if name not in ("stream", "partial_images")}
    control = Image.open(io.BytesIO(base64.b64decode(request["control_image"])))
    return {**known, "control_image": control}


def measure_images(bundle: Path, address: str, requests: Sequence[Body], rate: float) -> str:
    """Return how many images differ from those of calls alone by more than one level of 255."""
    answers = asyncio.run(send(address, requests, rate))
    assert all(answer.status == 200 for answer in answers)
    wrong = 0
    with ImagePipeline.load(bundle) as pipe:
        for request, answer in zip(requests, answers, strict=True):
            wanted = pipe(**arguments_of(request), output_type="np").images
            given = np.asarray(Image.open(io.BytesIO(answer.image)), np.float32)
            wrong += bool(np.abs(given - 255 * np.asarray(wanted)).max() > 1)
    return f"{wrong} of {len(requests)}"


def measure_speed(bundle: Path, address: str, side: int, count: int) -> tuple[str, str]:
    """Return the throughput relative to calls one by one, and the milliseconds that a request takes more."""
    requests = [body(i, side) for i in range(count)]
    short = [body(i, side, steps=(4, 4), guidance_scale=3.0) for i in range(10)]
    ratios, added = [], []
    with ImagePipeline.load(bundle) as pipe:
        pipe(**arguments_of(requests[0]))

        def calls(chosen: Sequence[Body]) -> None:
            for request in chosen:
                pipe(**arguments_of(request))

        def one_by_one(chosen: Sequence[Body]) -> None:
            for request in chosen:
                asyncio.run(send(address, [request], 0))

        for _ in range(3):
            ratios.append(
                seconds_of(lambda: calls(requests))
                / seconds_of(lambda: asyncio.run(send(address, requests, 0)))
            )
            added.append(
                (seconds_of(lambda: one_by_one(short)) - seconds_of(lambda: calls(short))) / len(short)
            )
    speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return speed, f"{1e3 * statistics.median(added):.1f} ms"


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_overload(bundle: Path, side: int, count: int) -> str:
    """Send all requests at once to a server whose queue holds 64 of them."""
    with served(bundle, "--queue", "64") as (address, process):
        asyncio.run(send(address, [body(i, side, steps=(4, 4)) for i in range(50)], 0))
        before = process.memory_info().rss
        answers = asyncio.run(send(address, [body(i, side, steps=(4, 12)) for i in range(count)], 0))
        grown = process.memory_info().rss / before - 1
    refused = [answer for answer in answers if answer.status == 429]
    answered = sum(answer.status == 200 for answer in answers)
    assert answered + len(refused) == count
    assert all(int(answer.retry_after or 0) > 0 for answer in refused)
    return f"{answered} answered, {len(refused)} told to retry, memory {grown:+.1%}"


def measure_leaving(address: str, process: psutil.Process, side: int, count: int) -> str:
    """Let clients disconnect; return what runs soon after, and how much memory grew."""
    before = process.memory_info().rss
    asyncio.run(leave(address, [body(i, side, steps=(50, 50)) for i in range(count)], 3.0))
    time.sleep(0.5)
    left = metric(address, "controlnext_requests_running") + metric(address, "controlnext_requests_waiting")
    return f"{left:.0f} still there, memory {process.memory_info().rss / before - 1:+.1%}"


def measure_memory(address: str, process: psutil.Process, side: int, count: int) -> str:
    """Return by how much resident memory grows from the 50th request to the last."""
    first = min(50, count)
    for start in range(0, count, first):
        asyncio.run(send(address, [body(i, side, steps=(4, 8)) for i in range(start, start + first)], 0))
        if not start:
            before = process.memory_info().rss
    now = process.memory_info().rss
    return f"{now / before - 1:+.1%} ({before / 1e6:.0f} to {now / 1e6:.0f} MB)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--size", type=int, default=64, help="side of the square images in pixels")
    given = parser.parse_args(arguments)
    bundle, side, count = given.bundle, given.size, given.requests
    print("| what | seen |\n| --- | --- |", flush=True)
    with served(bundle, "--queue", str(5 * count)) as (address, process):
        row(
            "images that differ from their calls alone",
            measure_images(bundle, address, [body(i, side) for i in range(count)], 4),
        )
        speed, added = measure_speed(bundle, address, side, max(count // 4, 1))
        row("throughput at saturation, calls one by one = 1", speed)
        row("a request, besides its call", added)
        row(
            f"memory over {5 * count} requests, from the 50th",
            measure_memory(address, process, side, 5 * count),
        )
        row(f"{count // 2} clients that disconnect", measure_leaving(address, process, side, count // 2))
    seconds, ratio = measure_waiting(bundle, side, count)
    row("first partial image, 95th percentile, against one request at a time", f"{ratio}: {seconds}")
    row(f"{5 * count // 2} requests at once, a queue of 64", measure_overload(bundle, side, 5 * count // 2))


if __name__ == "__main__":
    main()
