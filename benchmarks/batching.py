"""Run random requests through a batcher, and compare results, turns and time with calls one by one.

    controlnext-export --model sdxl ... --output build/shapes-fp32
    python benchmarks/batching.py build/shapes-fp32

Prints a Markdown table. The requests have 4 to 50 steps, all samplers, control scales from 0 to 1.5, guidance
or none, one or two images, and two sizes; they arrive at random moments at 1.5 times the rate that calls one
by one can serve. Latents are compared with those of calls alone by their relative L2 norm.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from controlnext.evaluation.metrics import relative_l2
from controlnext.runtime import Batcher, ImagePipeline, Step
from controlnext.runtime.batching import Observer

PROMPTS = ("a red circle on a blue background", "a green square on a black background")
MOST_ROWS = 8


@dataclass
class Timer(Observer):
    """Notes the runs of the denoiser: rows and seconds."""

    rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ran(self, requests: int, rows: int, seconds: float) -> None:  # noqa: ARG002
        """Take note of a run."""
        self.rows.append(rows)
        self.seconds.append(seconds)


def outline(side: int, number: int) -> Image.Image:
    """Return a control image of ``side`` pixels: an outline whose place depends on ``number``."""
    image = Image.new("RGB", (side, side))
    inset = side // 8 + number % (side // 8)
    ImageDraw.Draw(image).ellipse((inset, inset, side - inset, side - inset), outline="white", width=2)
    return image


def random_request(number: int, pipe: ImagePipeline, side: int) -> dict[str, Any]:
    """Return the arguments of a call."""
    chance = random.Random(number)
    return {
        "prompt": chance.choice(PROMPTS),
        "control_image": outline(chance.choice([side, 3 * side // 2]), number),
        "control_scale": chance.uniform(0, 1.5),
        "num_inference_steps": chance.randint(4, 50),
        "sampler": chance.choice(pipe.family.samplers),
        "guidance_scale": chance.choice([1.0, 3.0, 5.0]),
        "num_images_per_prompt": chance.choice([1, 1, 2]),
        "seed": number,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--size", type=int, default=64, help="the smaller side of a square image in pixels")
    given = parser.parse_args(arguments)
    print("| what | seen |\n| --- | --- |", flush=True)
    with ImagePipeline.load(given.bundle) as pipe:
        requests = [random_request(number, pipe, given.size) for number in range(given.requests)]
        pipe(**requests[0])
        started = time.perf_counter()
        alone = [pipe(**request).latents for request in requests]
        rate = len(requests) / (time.perf_counter() - started)
        batched, timer = run_at_random(pipe, requests, 1.5 * rate)
        differences = [relative_l2(one, other) for one, other in zip(batched, alone, strict=True)]
        row("latents, largest difference", f"{max(differences):.1e} over {len(requests)} requests")
        row("rows in a run, mean", f"{statistics.mean(timer.rows):.1f} of {MOST_ROWS}")
        row("steps of a 4-step request behind a 50-step one", f"at most {steps_behind(pipe, given.size)}")
        throughput, overhead = compare_throughput(pipe, requests[: max(len(requests) // 4, 1)])
        row("throughput at saturation, calls one by one = 1", throughput)
        row("time between runs of the denoiser, a run", overhead)


def row(what: str, seen: object) -> None:
    """Print a row of the table."""
    print(f"| {what} | {seen} |", flush=True)


def run_at_random(
    pipe: ImagePipeline, requests: Sequence[dict[str, Any]], rate: float
) -> tuple[list[np.ndarray], Timer]:
    """Submit requests at ``rate`` a second, Poisson distributed; return their latents."""
    chance, timer = random.Random(0), Timer()
    with Batcher(pipe, max_rows=MOST_ROWS, max_waiting=len(requests), observer=timer) as batcher:
        futures = []
        for request in requests:
            time.sleep(chance.expovariate(rate))
            futures.append(batcher.submit(**request))
        return [future.result().latents for future in futures], timer


def steps_behind(pipe: ImagePipeline, side: int) -> int:
    """Return the most runs of the denoiser from the submission of a 4-step request to its last step.

    It is submitted at each of some moments of a request of 50 steps.
    """
    request = random_request(0, pipe, side)
    most = 0
    for moment in (3, 11, 24, 37):
        timer, reached = Timer(), threading.Event()

        def wait_for(step: Step, moment: int = moment, reached: threading.Event = reached) -> None:
            if step.index == moment:
                reached.set()

        with Batcher(pipe, max_rows=MOST_ROWS, observer=timer) as batcher:
            long = batcher.submit(**{**request, "num_inference_steps": 50}, on_step=wait_for)
            reached.wait()
            before, last = len(timer.rows), [0]

            def count(_step: Step, last: list[int] = last, timer: Timer = timer) -> None:
                last[0] = len(timer.rows)

            short: Future[Any] = batcher.submit(**{**request, "num_inference_steps": 4}, on_step=count)
            short.result()
            long.cancel()
        most = max(most, last[0] - before)
    return most


def compare_throughput(pipe: ImagePipeline, requests: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return requests a second relative to calls one by one, and the overhead of a run of the denoiser.

    The two take turns, so that a shared machine's drift reaches both.
    """
    ratios, between = [], []
    for _ in range(3):
        started = time.perf_counter()
        for request in requests:
            pipe(**request)
        alone = time.perf_counter() - started
        timer = Timer()
        started = time.perf_counter()
        with Batcher(pipe, max_rows=MOST_ROWS, max_waiting=len(requests), observer=timer) as batcher:
            for request in requests:
                batcher.submit(**request)
        together = time.perf_counter() - started
        ratios.append(alone / together)
        between.append((together - sum(timer.seconds)) / len(timer.seconds))
    return (
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{1e3 * statistics.median(between):.2f} ms",
    )


if __name__ == "__main__":
    main()
