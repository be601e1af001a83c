"""An int8 bundle against the float32 bundle of the same weights, side by side on a processor.

    controlnext-export --model sd15 --precision fp32 --random-weights 0 --output build/sd15-fp32
    controlnext-export --model sd15 --precision int8 --random-weights 0 --output build/sd15-int8
    python benchmarks/int8.py build/sd15-fp32 build/sd15-int8

Samples built-in calibration examples with the float32 denoiser, lets the int8 one answer every step as well,
in turns, and prints a Markdown table: seconds of a step (least and median), how many times faster, and the
relative L2 error of the output (root mean square over the steps, and the worst).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from controlnext.commands.calibration import default_examples, run_trajectories
from controlnext.engines import open_engine
from controlnext.engines.base import Feed
from controlnext.manifest import read_manifest
from controlnext.registry import get_family


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("float32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--examples", type=int, default=2, choices=range(1, len(default_examples()) + 1))
    given = parser.parse_args()
    manifest = read_manifest(given.float32)
    folder = get_family(manifest.family).denoiser
    engines = [
        open_engine(path, read_manifest(path), folder, device="cpu") for path in (given.float32, given.int8)
    ]
    seconds: list[list[float]] = [[], []]
    errors: list[float] = []

    def both(feed: Feed) -> dict[str, np.ndarray]:
        outputs = []
        for engine, times in zip(engines, seconds, strict=True):
            started = time.perf_counter()
            outputs.append(engine.run(feed))
            times.append(time.perf_counter() - started)
        wanted, found = (output["noise_pred"] for output in outputs)
        errors.append(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
        return outputs[0]

    run_trajectories(given.float32, both, default_examples()[: given.examples])
    # the first step makes buffers
    plain, int8 = (times[1:] for times in seconds)
    print("| | least, s | median, s |\n| --- | --- | --- |")
    print(f"| float32 step | {min(plain):.3f} | {np.median(plain):.3f} |")
    print(f"| int8 step | {min(int8):.3f} | {np.median(int8):.3f} |")
    print(f"| times faster | {min(plain) / min(int8):.2f} | {np.median(plain) / np.median(int8):.2f} |")
    mean = np.sqrt(np.mean(np.square(errors)))
    print(f"\nRelative error over {len(errors)} steps: {mean:.2%}, at worst {max(errors):.2%}")


if __name__ == "__main__":
    main()
