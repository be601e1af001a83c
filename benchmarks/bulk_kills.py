"""Kill a bulk run at random moments, start it again each time, and check that every result is there once.

    controlnext-export --model sdxl ... --output build/shapes-fp32
    python benchmarks/bulk_kills.py build/shapes-fp32

Prints a Markdown table. Every image is compared with that of a call of the pipeline. Work that was done twice
are the results that a kill has lost: those that had been computed and were not in the ledger.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from batching import PROMPTS, outline, row
from PIL import Image

from controlnext.runtime import ImagePipeline
from controlnext.runtime.bulk.ledger import LEDGER

MAX_ROWS = 8
CONTROLS = 20


def write_jobs(directory: Path, side: int, count: int) -> Path:
    """Write a file of jobs and their control images."""
    chance, jobs = random.Random(1), directory / "jobs.jsonl"
    for number in range(CONTROLS):
        outline(side, number).save(directory / f"{number}.png")
    with jobs.open("w") as file:
        for number in range(count):
            job: dict[str, Any] = {
                "id": f"job-{number}",
                "prompt": chance.choice(PROMPTS),
                "control_image": f"{chance.randrange(CONTROLS)}.png",
                # with these, images of one seed are not those of another even with a stand-in model
                "num_inference_steps": chance.randint(4, 8),
                "sampler": "ddim",
                "guidance_scale": chance.choice([1.0, 3.0]),
                "seed": number,
            }
            file.write(json.dumps(job) + "\n")
    return jobs


def records(output: Path) -> list[dict[str, Any]]:
    """Return the records that are whole in a ledger."""
    path = output / LEDGER
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def killed_at(command: Sequence[str], output: Path, mark: int, delay: float) -> bool:
    """Run, kill the run ``delay`` seconds after the ledger had ``mark`` records; return whether that hit it.

    Raises :class:`RuntimeError` if the run fails by itself.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while len(records(output)) < mark and process.poll() is None:
            time.sleep(0.02)
        time.sleep(delay)
        process.kill()
        _, said = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run ended with status {process.returncode}: {said}")
    return process.returncode == -signal.SIGKILL


def run_with_kills(bundle: Path, jobs: Path, output: Path, count: int, kills: int) -> list[int]:
    """Run to the end; return how many finished images each kill that hit left out of the ledger."""
    command = [sys.executable, "-m", "controlnext", "batch", str(bundle), "--jobs", str(jobs)]
    command += ["--output", str(output), "--max-rows", str(MAX_ROWS), "--json", "--no-metadata"]
    chance, marks, lost = random.Random(2), list[int](), list[int]()
    while len(lost) < kills:
        marks = marks or sorted(chance.sample(range(1, count), kills - len(lost)))
        mark = max(marks.pop(0), len(records(output)) + 1)
        if killed_at(command, output, mark, chance.uniform(0, 0.2)):
            lost.append(len(list(output.glob("*.png"))) - len(records(output)))
        else:
            # it was at its end before: the rest of the kills needs another run
            shutil.rmtree(output)
            marks = []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return lost


def wrong_results(bundle: Path, jobs: Path, output: Path) -> int:
    """Return how many files differ by a byte from those of a call."""
    wrong = 0
    with ImagePipeline.load(bundle) as pipe:
        for line in jobs.read_text().splitlines():
            job = json.loads(line)
            path = output / f"{job.pop('id')}.png"
            control = Image.open(jobs.parent / job.pop("control_image"))
            wanted = BytesIO()
            images: Any = pipe(**job, control_image=control).images
            images[0].save(wanted, "PNG")
            wrong += path.read_bytes() != wanted.getvalue()
    return wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="side of the square images in pixels")
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        directory, output = Path(temporary), Path(temporary) / "results"
        jobs = write_jobs(directory, given.size, given.jobs)
        lost = run_with_kills(given.bundle, jobs, output, given.jobs, given.kills)
        ids = [record["id"] for record in records(output) if "error" not in record]
        files = {path.name for path in output.iterdir()} - {LEDGER, ".lock"}
        print("| what | seen |\n| --- | --- |")
        row("jobs done, each once", f"{len(set(ids))} of {given.jobs}, {len(ids)} lines, {len(files)} files")
        row("different images", len({record["checksum"][0] for record in records(output)}))
        row("files that differ by a byte from those of calls", wrong_results(given.bundle, jobs, output))
        told = f"at most {max(lost)} a kill, {sum(lost)} in {len(lost)} that hit; at work are {MAX_ROWS} jobs"
        row("images written and lost to the ledger", told)


if __name__ == "__main__":
    main()
