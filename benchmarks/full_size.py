"""Export every family at full size with random weights, inspect the bundle and run one step of it.

    python benchmarks/full_size.py [--only sd15-fp16 ...] [--folder DIR]

Prints a Markdown table: seconds, peak memory and size of each export, its allowed peak memory (1.3 times the
largest graph's weights plus 1.5 GB), and seconds and peak memory of one step at 256 x 256 on the CPU. Needs
up to 20 GB of memory and 25 GB of disk in DIR for the largest bundle; every bundle is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from controlnext.bundle.files import MANIFEST


@dataclass(frozen=True)
class Trial:
    """An export with these options; ``clip``: whether its bundle makes clips."""

    name: str
    options: tuple[str, ...]
    clip: bool = False


ADAPTERS = ("--lora-rank", "32", "--ip-adapter", "base", "--ip-adapter", "plus")
TRIALS = (
    Trial("sd15-fp32", ("--model", "sd15", "--precision", "fp32")),
    Trial("sd15-fp16", ("--model", "sd15", "--precision", "fp16")),
    Trial("svd-fp16", ("--model", "svd", "--precision", "fp16"), clip=True),
    Trial("sd3-fp16", ("--model", "sd3", "--precision", "fp16", "--no-t5")),
    Trial("sdxl-fp16", ("--model", "sdxl", "--precision", "fp16")),
    Trial("sd15-fp16-adapters", ("--model", "sd15", "--precision", "fp16", *ADAPTERS)),
    Trial(
        "sdxl-fp16-adapters",
        ("--model", "sdxl", "--precision", "fp16", *ADAPTERS[:2], "--ip-adapter", "plus"),
    ),
)
T5 = "t5-xxl-fp16"
COLUMNS = (
    "bundle", "export, s", "peak, GB", "allowed, GB", "size, GB", "one step, s", "its peak, GB",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the selected trials and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*(trial.name for trial in TRIALS), T5]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--export-t5", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.export_t5:
        export_t5(given.export_t5)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for name in given.only:
        directory = Path(tempfile.mkdtemp(dir=given.folder))
        try:
            row = measure(name, directory)
        finally:
            shutil.rmtree(directory)
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def measure(name: str, directory: Path) -> list[str]:
    """Run a trial in ``directory`` and return the cells of its row."""
    bundle = directory / "bundle"
    trial = next((trial for trial in TRIALS if trial.name == name), None)
    if trial is None:
        seconds, peak = run([sys.executable, __file__, "--export-t5", str(bundle)])
    else:
        seconds, peak = controlnext(
            "export", *trial.options, "--random-weights", "0", "--output", str(bundle), "--json"
        )
    manifest = json.loads((bundle / MANIFEST).read_text())
    sizes: dict[str, int] = {}
    for file, entry in manifest["files"].items():
        graph = file.partition("/")[0]
        sizes[graph] = sizes.get(graph, 0) + entry["bytes"]
    row = [f"{seconds:.0f}", gb(peak), gb(int(1.3 * max(sizes.values()) + 1.5e9)), gb(sum(sizes.values()))]
    if trial is None:
        return [*row, "", ""]
    controlnext("inspect", str(bundle), "--json")
    seconds, peak = controlnext("run", str(bundle), *images(trial, directory), "--steps", "1", "--json")
    return [*row, f"{seconds:.0f}", gb(peak)]


def images(trial: Trial, directory: Path) -> list[str]:
    """Write control images and return the options of a run at 256 x 256, of an image or of a clip of two
    frames."""
    size = (256, 256)
    if not trial.clip:
        Image.new("RGB", size, "white").save(directory / "control.png")
        control = str(directory / "control.png")
        words = ["--prompt", "a red circle", "--control-image", control]
        words += ["--ip-adapter-image", control] * trial.options.count("--ip-adapter")
        return [*words, "--output", str(directory / "image.png")]
    (directory / "clip").mkdir()
    for frame in range(2):
        Image.new("RGB", size, (0, 0, 255 * frame)).save(directory / "clip" / f"{frame}.png")
    still = ["--image", str(directory / "clip" / "0.png"), "--control-image", str(directory / "clip")]
    return [*still, "--output", str(directory / "clip.gif")]


def controlnext(*arguments: str) -> tuple[float, int]:
    """Run the command ``controlnext``; see :func:`run`."""
    return run([sys.executable, "-m", "controlnext", *arguments])


def run(command: list[str]) -> tuple[float, int]:
    """Run a command and return its seconds and peak memory in bytes; exit with its output if it fails."""
    started = time.monotonic()
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{output.read().decode()}")
    return time.monotonic() - started, usage.ru_maxrss * 1024


def export_t5(bundle: Path) -> None:
    """Export SD3's third text encoder alone."""
    from controlnext.export import export_bundle
    from controlnext.families import get_family
    from controlnext.weights import load_checkpoint

    checkpoint = load_checkpoint(get_family("sd3"), random_seed=0)
    graphs = tuple(graph for graph in checkpoint.family.graphs if graph.name == "text_encoder_3")
    export_bundle(replace(checkpoint, family=replace(checkpoint.family, graphs=graphs)), "fp16", bundle)


def gb(count: int) -> str:
    """Return a number of bytes in GB."""
    return f"{count / 1e9:.1f}"


if __name__ == "__main__":
    main()
