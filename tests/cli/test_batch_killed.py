"""``controlnext batch`` on a cluster whose actors are killed: each job once, its record that of its file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from controlnext.runtime.bulk.results import LEDGER
from support.fake_bundle import write_fake_bundle
from support.gate import until
from support.recipe import drawing

COUNT, ROWS = 16, 2


def actors(driver: int) -> list[psutil.Process]:
    """Return the processes that do jobs, of the cluster that a process has started."""
    return [one for one in psutil.Process(driver).children(recursive=True) if "_Actor" in one.name()]


def done_by_actors(output: Path) -> set[str]:
    """Return the ids that are in the ledgers of actors, in lines that are whole."""
    paths = output.glob(".parts/*.jsonl")
    lines = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return {json.loads(line)["id"] for line in lines if line.endswith(b"\n")}


@pytest.mark.export
def test_a_killed_actor(tmp_path: Path) -> None:
    """What it has done of its batch stays and is not done again, but for what it had at work; nothing else is
    on stdout than the summary."""
    drawing(1, 384, 384).save(tmp_path / "control.png")
    call = {"prompt": "a red circle", "control_image": "control.png", "sampler": "ddim"}
    # without seeds: an image that is made again is another one
    rows = ({**call, "id": f"job-{number}", "num_inference_steps": 8} for number in range(COUNT))
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bundle, output = write_fake_bundle(tmp_path / "fake"), tmp_path / "out"
    command = [sys.executable, "-m", "controlnext", "batch", str(bundle), f"--jobs={tmp_path}/jobs.jsonl"]
    command += [f"--output={output}", f"--max-rows={ROWS}", "--threads=1", "--ray", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: bool(done_by_actors(output)) or process.poll() is not None)
        (actor,) = actors(process.pid)
        actor.send_signal(signal.SIGKILL)
        actor.wait(10)
        kept = done_by_actors(output)
        before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
        out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    # not at the end of a batch, which is twice as large
    assert 1 <= len(kept) < 2 * ROWS
    assert json.loads(out)["done"] == COUNT
    records = [json.loads(line) for line in (output / LEDGER).read_text().splitlines()]
    assert [record["id"] for record in records] == [f"job-{number}" for number in range(COUNT)]
    for record in records:
        assert record["checksum"] == [sha256((output / record["files"][0]).read_bytes()).hexdigest()]
    assert len({record["checksum"][0] for record in records}) == COUNT
    again = {name for name, time_ns in before.items() if (output / name).stat().st_mtime_ns != time_ns}
    assert not again & {f"{name}.png" for name in kept}
    assert len(again) <= ROWS
