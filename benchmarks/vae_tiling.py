"""Decode random latents whole and in tiles on a CPU, and compare memory, time and pixels.

    controlnext-export --model sd15 --precision fp32 --random-weights 0 --output build/sd15-fp32
    python benchmarks/vae_tiling.py build/sd15-fp32 --size 512 --size 1024 --size 2048

Prints a Markdown table with a row per size of a square image: the peak memory of a process that opens the
decoder and decodes one image, the seconds of decoding, and the largest difference of the pixels of both
images, in [0, 1]. Nothing is written to the bundle. If a whole image does not fit into memory, use
--only-tiled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from controlnext.bench.worker import peak_memory
from controlnext.runtime import Pipeline

COLUMNS = ("size", "whole, GB", "tiled, GB", "whole, s", "tiled, s", "largest difference")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, action="append", required=True)
    parser.add_argument("--only-tiled", action="store_true")
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.image:
        decode(given.bundle, given.size[0], given.only_tiled, given.image)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for size in given.size:
            tiled = measure(given.bundle, size, True, Path(scratch) / "tiled.npy")
            row = (str(size), "", tiled[0], "", tiled[1], "")
            if not given.only_tiled:
                whole = measure(given.bundle, size, False, Path(scratch) / "whole.npy")
                images = [
                    np.load(Path(scratch) / name, allow_pickle=False) for name in ("tiled.npy", "whole.npy")
                ]
                difference = f"{np.abs(images[0] - images[1]).max():.3f}"
                row = (str(size), whole[0], tiled[0], whole[1], tiled[1], difference)
            print(f"| {' | '.join(row)} |", flush=True)


def measure(bundle: Path, size: int, tiled: bool, image: Path) -> tuple[str, str]:
    """Decode in a new process that writes ``image``; return its peak memory in GB and the seconds of
    decoding."""
    command = [sys.executable, __file__, str(bundle), "--size", str(size), "--image", str(image)]
    done = subprocess.run([*command, *["--only-tiled"] * tiled], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"decoding {size} x {size} {'in tiles' if tiled else 'whole'} failed")
    result = json.loads(done.stdout)
    return f"{result['peak'] / 1e9:.2f}", f"{result['seconds']:.1f}"


def decode(bundle: Path, size: int, tiled: bool, image: Path) -> None:
    """Decode in this process and print a JSON object."""
    with Pipeline.load(bundle, "onnxruntime", "cpu", cache=False) as pipe:
        engine, factor = pipe.bundle.engine("vae_decoder"), pipe.family.vae_factor
        (latents,) = engine.inputs
        shape = (1, int(latents.shape[1]), size // factor, size // factor)
        noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        started = time.perf_counter()
        pixels = pipe.decode(noise, "np", vae_tiling=tiled)
        seconds, peak = time.perf_counter() - started, peak_memory()
    np.save(image, np.asarray(pixels))
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()
