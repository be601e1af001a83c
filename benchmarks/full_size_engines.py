"""Export families at full size with random weights and build TensorRT-RTX engines of them, without a GPU.

    python benchmarks/full_size_engines.py [--only sdxl-fp16 ...] [--folder DIR] [--all-graphs]

Prints a Markdown table: the largest batch, seconds, peak memory and size of each engine. Each graph is built
in its own process, only the denoiser unless --all-graphs is given. Needs up to 12 GB of memory and 15 GB of
disk in DIR; every bundle is removed at the end. With --bundle DIR the engines of an existing bundle are built
instead, for the sizes of the trial of --only, and the bundle is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from full_size import controlnext, gb

from controlnext.bundle.files import MANIFEST


@dataclass(frozen=True)
class EngineTrial:
    """An export and the sizes of its engines, both as options of the command line."""

    name: str
    export: tuple[str, ...]
    sizes: tuple[str, ...]


_SDXL = ("--height", "512:1024:1280", "--width", "512:1024:1280", "--batch", "1:1:4")
_SD3 = ("--height", "512:1024:1280", "--width", "512:1024:1280", "--batch", "1:1:4")
_SD15 = ("--height", "256:512:768", "--width", "256:512:768", "--batch", "1:1:4")
_SVD = ("--height", "320:576:576", "--width", "512:1024:1024", "--frames", "1:14:24")
TRIALS = (
    EngineTrial("sd15-fp16", ("--model", "sd15", "--precision", "fp16"), _SD15),
    EngineTrial("sd15-int8", ("--model", "sd15", "--precision", "int8"), _SD15),
    EngineTrial("svd-fp16", ("--model", "svd", "--precision", "fp16"), _SVD),
    EngineTrial("sd3-fp16", ("--model", "sd3", "--precision", "fp16", "--no-t5"), _SD3),
    EngineTrial("sdxl-fp16", ("--model", "sdxl", "--precision", "fp16"), _SDXL),
)
COLUMNS = ("engine", "largest batch", "build, s", "peak, GB", "graph, GB", "engine, GB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the selected trials and print a row for each engine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [trial.name for trial in TRIALS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--all-graphs", action="store_true")
    given = parser.parse_args(arguments)
    if given.bundle and len(given.only) > 1:
        parser.error("--bundle needs --only NAME, the trial of the bundle")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for trial in (trial for trial in TRIALS if trial.name in given.only):
        if given.bundle:
            measure(trial, given.bundle, given.all_graphs)
            continue
        directory = Path(tempfile.mkdtemp(dir=given.folder))
        try:
            bundle = directory / "bundle"
            controlnext("export", *trial.export, "--random-weights", "0", "--output", str(bundle), "--json")
            measure(trial, bundle, given.all_graphs)
        finally:
            shutil.rmtree(directory)


def measure(trial: EngineTrial, bundle: Path, all_graphs: bool) -> None:
    """Build the engines of a bundle and print their rows."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    graphs = [name for name in manifest["graphs"] if all_graphs or name in ("unet", "transformer")]
    for graph in graphs:
        options = ("--backend", "tensorrt-rtx", "--graph", graph, *trial.sizes, "--force", "--json")
        seconds, peak = controlnext("build", str(bundle), *options)
        directory = bundle / "engines" / "tensorrt-rtx-portable" / graph
        profile = json.loads((directory / "entry.json").read_text())["key"]["profile"]
        largest = "x".join(str(size) for size in next(iter(profile.values()))[-1])
        weights = sum(e["bytes"] for name, e in manifest["files"].items() if name.startswith(f"{graph}/"))
        sizes = gb(weights), gb((directory / "model.engine").stat().st_size)
        row = (f"{trial.name} {graph}", largest, f"{seconds:.0f}", gb(peak), *sizes)
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
