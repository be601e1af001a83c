"""Compare an int8 bundle with the float32 bundle of the same weights on a CPU.

    controlnext-export --model sd15 --precision fp32 --random-weights 0 --output build/sd15-fp32
    controlnext-export --model sd15 --precision int8 --random-weights 0 --output build/sd15-int8
    python benchmarks/int8.py build/sd15-fp32 build/sd15-int8

Samples built-in calibration examples with the float32 denoiser and runs the int8 one on the same inputs, for
the relative L2 error of the output (root mean square over the steps, and the largest). Then both run some of
these steps in turns; a Markdown table has the seconds of a step and the speed-up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from controlnext.bundle.reader import read_manifest
from controlnext.engines import Engine, open_engine
from controlnext.evaluation.calibration_data import default_examples, run_trajectories
from controlnext.evaluation.metrics import relative_l2
from controlnext.families import get_family
from controlnext.types import Feed

ROUNDS, FEEDS = 4, 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("float32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--examples", type=int, default=2, choices=range(1, len(default_examples()) + 1))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    manifest = read_manifest(given.float32)
    denoiser = get_family(manifest.family).denoiser
    engines = [
        open_engine(path, read_manifest(path), denoiser, device="cpu") for path in (given.float32, given.int8)
    ]
    feeds: list[Feed] = []
    errors: list[float] = []

    def both(feed: Feed) -> dict[str, np.ndarray]:
        feeds.append(dict(feed))
        outputs = [engine.run(feed) for engine in engines]
        wanted, found = (output["noise_pred"] for output in outputs)
        errors.append(relative_l2(found, wanted))
        return outputs[0]

    run_trajectories(given.float32, both, default_examples()[: given.examples])
    seconds: list[list[float]] = [[], []]
    for _ in range(given.rounds):
        for engine, times in zip(engines, seconds, strict=True):
            times += measure(engine, feeds[:FEEDS])
    plain, int8 = seconds
    print("| | least, s | median, s |\n| --- | --- | --- |")
    print(f"| float32 step | {min(plain):.3f} | {np.median(plain):.3f} |")
    print(f"| int8 step | {min(int8):.3f} | {np.median(int8):.3f} |")
    print(f"| times faster | {min(plain) / min(int8):.2f} | {np.median(plain) / np.median(int8):.2f} |")
    mean = np.sqrt(np.mean(np.square(errors)))
    print(f"\nRelative error over {len(errors)} steps: {mean:.2%}, at worst {max(errors):.2%}")


def measure(engine: Engine, feeds: list[Feed]) -> list[float]:
    """Return the seconds of each step but the first, during which the other engine's threads still spin."""
    seconds = []
    for feed in feeds:
        started = time.perf_counter()
        engine.run(feed)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


if __name__ == "__main__":
    main()
