"""Time a denoising step of a bundle with room for LoRAs against one without: the room unused, and used.

    controlnext-export --model sd15 --precision fp32 --random-weights 0 --output build/sd15
    controlnext-export --model sd15 --precision fp32 --random-weights 0 --lora-rank 16 \\
        --output build/sd15-lora
    python benchmarks/lora_room.py build/sd15 build/sd15-lora --size 512

Opens one bundle's denoiser at a time, in turns, and takes the same guided step with each; the LoRA is one of
random numbers in all layers, at the largest rank that there is room for. Prints a Markdown table of medians.
Goals: 3 % for room that is not used, 12 % for room that is used.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from controlnext.bench.messages import Work
from controlnext.bench.requests import step_feed
from controlnext.bundle.reader import read_manifest
from controlnext.engines import BoundEngine, Feed, open_engine
from controlnext.evaluation.inputs import SEED
from controlnext.evaluation.random_lora import random_inputs
from controlnext.families import PER_STEP_INPUTS, get_family

ROUNDS, STEPS = 2, 3
WITHOUT, UNUSED, USED = "without room", "room, unused", "room, used"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plain", type=Path, help="bundle without room")
    parser.add_argument("roomy", type=Path, help="bundle of the same model with room")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each bundle has its turn")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a turn, after one to warm up")
    parser.add_argument("--backend", default="auto")
    given = parser.parse_args(arguments)
    work, seconds = Work(height=given.size, width=given.size), defaultdict[str, list[float]](list)
    for _ in range(given.rounds):
        for bundle in (given.plain, given.roomy):
            for title, taken in turn(bundle, work, given.steps, given.backend).items():
                seconds[title] += taken
    print("| step | s | share |\n| --- | --- | --- |")
    medians = {title: statistics.median(taken) for title, taken in seconds.items()}
    for title, median in medians.items():
        print(f"| {title} | {median:.3f} | {median / medians[WITHOUT] - 1:+.1%} |")


def turn(bundle: Path, work: Work, steps: int, backend: str) -> dict[str, list[float]]:
    """Return the seconds of each step that a bundle takes in its turn, by what is measured."""
    manifest, feed = read_manifest(bundle), step_feed(bundle, work)
    graph_name = get_family(manifest.family).denoiser
    room = manifest.graphs[graph_name].lora
    feeds = {UNUSED: feed, USED: {**feed, **random_inputs(room, SEED)}} if room else {WITHOUT: feed}
    with open_engine(bundle, manifest, graph_name, backend) as engine:
        return {title: _seconds(engine.bind(_constants(own)), own, steps) for title, own in feeds.items()}


def _constants(feed: Feed) -> Feed:
    return {name: array for name, array in feed.items() if name not in PER_STEP_INPUTS}


def _seconds(bound: BoundEngine, feed: Feed, steps: int) -> list[float]:
    per_step = {name: feed[name] for name in PER_STEP_INPUTS}
    bound.run(per_step)
    taken = []
    for _ in range(steps):
        started = time.perf_counter()
        bound.run(per_step)
        taken.append(time.perf_counter() - started)
    return taken


if __name__ == "__main__":
    main()
