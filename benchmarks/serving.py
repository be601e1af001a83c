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
from batching import row
from load import Body, body, leave, metric, send, send_in_turn, served
from PIL import Image

from controlnext.runtime import ImagePipeline

PARTIAL_IMAGES = 3
Measures = dict[str, tuple[str, Callable[[Path, int, int], str]]]
"""What is measured, and the function of the bundle, the side and the number of requests that measures it."""


def measure_waiting(bundle: Path, side: int, count: int) -> str:
    """Return the 95th percentile of the time to the first partial image, against one request at a time.

    Both servers get the same requests, at 0.8 of the rate at which the one that does one at a time serves.
    """
    requests = [body(i, side, stream=True, partial_images=PARTIAL_IMAGES) for i in range(count)]
    found, rate = [], 0.0
    for options in (["--max-rows", "1"], []):
        with served(bundle, *options, "--queue", str(count)) as (address, _):
            if not rate:
                some = requests[: max(count // 4, 1)]
                started = time.perf_counter()
                asyncio.run(send(address, some, 0))
                rate = 0.8 * len(some) / (time.perf_counter() - started)
            replies = asyncio.run(send(address, requests, rate))
        assert all(reply.status == 200 for reply in replies)
        found.append(float(np.percentile([reply.first for reply in replies], 95)))
    alone, shared = found
    return f"{shared / alone:.2f}: {shared:.2f} s against {alone:.2f} s at {rate:.1f} requests/s"


def arguments_of(request: Body) -> dict[str, Any]:
    """Return the arguments of the call of a pipeline that a request stands for."""
    known = {name: value for name, value in request.items() if name not in ("stream", "partial_images")}
    control = Image.open(io.BytesIO(base64.b64decode(request["control_image"])))
    return {**known, "control_image": control}


def measure_images(bundle: Path, side: int, count: int) -> str:
    """Return how many images differ from those of calls alone by more than one level of 255."""
    requests = [body(i, side) for i in range(count)]
    with served(bundle, "--queue", str(count)) as (address, _):
        replies = asyncio.run(send(address, requests, 4.0))
    assert all(reply.status == 200 for reply in replies)
    pairs = [(request, reply.image) for request, reply in zip(requests, replies, strict=True)]
    return f"{wrong_images(bundle, pairs)} of {count}"


def wrong_images(bundle: Path, answered: Sequence[tuple[Body, bytes]], threads: int | None = None) -> int:
    """Return how many images differ from those of calls by more than one level of 255."""
    wrong = 0
    with ImagePipeline.load(bundle, threads=threads) as pipe:
        for request, content in answered:
            wanted = pipe(**arguments_of(request), output_type="np").images
            given = np.asarray(Image.open(io.BytesIO(content)), np.float32)
            wrong += bool(np.abs(given - 255 * np.asarray(wanted)).max() > 1)
    return wrong


def measure_throughput(bundle: Path, side: int, count: int) -> str:
    """Return requests a second at saturation relative to calls one by one, which take turns with them."""
    requests = [body(i, side) for i in range(count)]
    with ImagePipeline.load(bundle) as pipe, served(bundle, "--queue", str(count)) as (address, _):
        call_all(pipe, requests[:1])
        ratios = [
            seconds_of(lambda: call_all(pipe, requests))
            / seconds_of(lambda: asyncio.run(send(address, requests, 0)))
            for _ in range(3)
        ]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def measure_overhead(bundle: Path, side: int, count: int) -> str:
    """Return the milliseconds that a short request takes more than its call, when nothing else runs."""
    requests = [body(i, side, steps=(4, 4), guidance_scale=3.0) for i in range(count)]
    with ImagePipeline.load(bundle) as pipe, served(bundle) as (address, _):
        call_all(pipe, requests[:1])
        asyncio.run(send_in_turn(address, requests[:1]))
        added = [
            seconds_of(lambda: asyncio.run(send_in_turn(address, requests)))
            - seconds_of(lambda: call_all(pipe, requests))
            for _ in range(5)
        ]
    return f"{1e3 * statistics.median(added) / count:.1f} ms"


def call_all(pipe: ImagePipeline, requests: Sequence[Body]) -> None:
    """Make the calls that requests stand for, one by one."""
    for request in requests:
        pipe(**arguments_of(request))


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_overload(bundle: Path, side: int, count: int) -> str:
    """Send all requests at once, twice, to a server whose queue holds 64 of them."""
    requests = [body(i, side, steps=(4, 12)) for i in range(5 * count // 2)]
    told = []
    with served(bundle, "--queue", "64") as (address, process):
        for _ in range(3):
            replies = asyncio.run(send(address, requests, 0))
            refused = [reply for reply in replies if reply.status == 429]
            answered = sum(reply.status == 200 for reply in replies)
            assert answered + len(refused) == len(requests)
            assert all(int(reply.retry_after or 0) > 0 for reply in refused)
            left = waiting_or_running(address)
            told.append((answered, len(refused), process.memory_info().rss, left))
    answered, refusals, before, _ = told[0]
    _, _, now, left = told[-1]
    return (
        f"{answered} answered, {refusals} told to retry, {left:.0f} left in the queue; memory after two more"
        f" times {now / before - 1:+.1%}"
    )


def waiting_or_running(address: str) -> float:
    """Return how many requests the server says that it has."""
    return sum(metric(address, f"controlnext_requests_{state}") for state in ("waiting", "running"))


def measure_leaving(bundle: Path, side: int, count: int) -> str:
    """Let clients disconnect within 3 s; return what is left then, and how much memory grew."""
    requests = [body(i, side, steps=(50, 50)) for i in range(count // 2)]
    with served(bundle, "--queue", str(count)) as (address, process):
        asyncio.run(leave(address, requests, 3.0))
        before = process.memory_info().rss
        asyncio.run(leave(address, requests, 3.0))
        time.sleep(0.5)
        left = waiting_or_running(address)
        return f"{left:.0f} of {len(requests)} left, memory {process.memory_info().rss / before - 1:+.1%}"


def measure_memory(bundle: Path, side: int, count: int) -> str:
    """Return by how much resident memory grows from the 50th request to the last."""
    first = min(50, 5 * count)
    with served(bundle) as (address, process):
        for start in range(0, 5 * count, first):
            requests = [body(i, side, steps=(4, 8)) for i in range(start, start + first)]
            asyncio.run(send(address, requests, 0))
            if not start:
                before = process.memory_info().rss
        now = process.memory_info().rss
    return f"{now / before - 1:+.1%} ({before / 1e6:.0f} to {now / 1e6:.0f} MB)"


MEASURES: Measures = {
    "images": ("images that differ from their calls alone", measure_images),
    "throughput": ("throughput at saturation, calls one by one = 1", measure_throughput),
    "overhead": ("a request takes longer than its call", measure_overhead),
    "waiting": ("first partial image, 95th percentile, one request at a time = 1", measure_waiting),
    "memory": ("memory from the 50th request to the last, five times as many", measure_memory),
    "leaving": ("half as many clients that disconnect", measure_leaving),
    "overload": ("two and a half times as many at once, a queue of 64", measure_overload),
}


def print_measures(doc: str, measures: Measures, arguments: Sequence[str] | None) -> None:
    """Print the table of a script whose docstring is ``doc``, with the measures that are asked for."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--size", type=int, default=64, help="side of the square images in pixels")
    parser.add_argument("--only", action="append", choices=measures, help="may be repeated")
    given = parser.parse_args(arguments)
    print("| what | seen |\n| --- | --- |", flush=True)
    for name in given.only or measures:
        title, measure = measures[name]
        row(title, measure(given.bundle, given.size, given.requests))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    print_measures(__doc__ or "", MEASURES, arguments)


if __name__ == "__main__":
    main()
