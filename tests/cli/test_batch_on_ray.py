"""``controlnext batch`` on a cluster that is there already: the files of one process, and what kills do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import psutil
import pyarrow
import pytest
from pyarrow import parquet

from controlnext.runtime.bulk.ledger import LEDGER
from support.cli import Cli
from support.fake_bundle import write_fake_bundle
from support.gate import until
from support.recipe import drawing

pytestmark = pytest.mark.export
COUNT, ROWS = 16, 2
CORES = 2
CALL = {"prompt": "a red circle", "control_image": "control.png", "sampler": "ddim"}
"""With the steps that are given below every seed makes another image."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def command(tmp_path: Path, address: str) -> list[str]:
    """Return a command whose jobs have no seeds: an image that is made again is another one."""
    drawing(1, 384, 384).save(tmp_path / "control.png")
    rows = ({**CALL, "id": f"job-{number}", "num_inference_steps": 8} for number in range(COUNT))
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bundle = write_fake_bundle(tmp_path / "fake")
    given = ["batch", str(bundle), f"--jobs={tmp_path}/jobs.jsonl", f"--output={tmp_path}/out"]
    options = [f"--max-rows={ROWS}", "--threads=1", "--ray", address, "--json"]
    return [sys.executable, "-m", "controlnext", *given, *options]


def actor() -> psutil.Process:
    """Return the process that does the jobs."""
    (found,) = [one for one in psutil.Process().children(recursive=True) if "_Actor" in one.name()]
    return found


def done_by_actors(output: Path) -> set[str]:
    """Return the ids that are in the ledgers of actors, in lines that are whole."""
    paths = output.glob(".parts/*.jsonl")
    lines = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return {json.loads(line)["id"] for line in lines if line.endswith(b"\n")}


def check_results(output: Path) -> None:
    """Check that each job is there once, its record that of its file, its image no other's."""
    records = [json.loads(line) for line in (output / LEDGER).read_text().splitlines()]
    assert [record["id"] for record in records] == [f"job-{number}" for number in range(COUNT)]
    for record in records:
        assert record["checksum"] == [sha256((output / record["files"][0]).read_bytes()).hexdigest()]
    assert len({record["checksum"][0] for record in records}) == COUNT


def test_it_makes_the_files_of_one_process(cli: Cli, tmp_path: Path, address: str) -> None:
    """Also with two actors; a table of jobs has a table of results; a bad job is told."""
    drawing(1, 24, 16).save(tmp_path / "control.png")
    rows = [{**CALL, "num_inference_steps": 4, "seed": seed} for seed in range(5)]
    table, bundle = tmp_path / "jobs.parquet", write_fake_bundle(tmp_path / "fake")
    parquet.write_table(pyarrow.Table.from_pylist([*rows, {**rows[0], "control_image": "none.png"}]), table)
    found = []
    for options in ([], ["--ray", address, "--replicas", "2"]):
        output = tmp_path / f"out{len(options)}"
        given = ["--jobs", table, "--output", output, "--threads", 1, "--max-rows", 2, "--json"]
        done = cli("batch", bundle, *given, *options)
        assert done.status == 1
        counts = {"jobs": 6, "done": 5, "failed": 1, "done_before": 0, "not_begun": 0, "images": 5}
        assert {**json.loads(done.out), "seconds": 0} == {"output": str(output), **counts, "seconds": 0}
        records = [json.loads(line) for line in (output / LEDGER).read_text().splitlines()]
        found.append([(one["id"], one.get("checksum"), one.get("seed")) for one in records])
        assert parquet.read_table(output / "results.parquet").column("id").to_pylist() == list("123456")
    assert found[0] == found[1]
    assert len({str(checksum) for _, checksum, _ in found[0]}) == 6


def test_a_killed_actor(command: list[str], tmp_path: Path) -> None:
    """What it has done of its batch stays and is not done again, but for what it had at work; nothing else is
    on stdout than the summary, whatever Ray tells of the kill."""
    output = tmp_path / "out"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: bool(done_by_actors(output)) or process.poll() is not None)
        killed = actor()
        killed.send_signal(signal.SIGKILL)
        until(lambda: not killed.is_running() or killed.status() == psutil.STATUS_ZOMBIE)
        kept = done_by_actors(output)
        before = {path.stem: path.stat().st_mtime_ns for path in output.glob("*.png")}
        out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    # not at the end of a batch, which is twice as large
    assert 1 <= len(kept) < 2 * ROWS
    assert json.loads(out)["done"] == COUNT
    check_results(output)
    again = {name for name, time_ns in before.items() if _time(output, name) != time_ns}
    assert not again & kept
    assert len(again) <= ROWS


def test_a_killed_driver(command: list[str], tmp_path: Path) -> None:
    """The next one waits until the actors of the one before are gone, and goes on from what they did."""
    output = tmp_path / "out"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        # starting a cluster takes long where the processor is busy
        until(lambda: bool(done_by_actors(output)) or process.poll() is not None, patience=200)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    summary = json.loads(done.stdout)
    assert 1 <= summary["done_before"] == COUNT - summary["done"] < COUNT
    check_results(output)


def test_no_node_has_so_many_cores(command: list[str]) -> None:
    """That is said at once: an actor would wait for one without an end."""
    done = subprocess.run([*command, f"--threads={CORES + 1}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    told = f"--threads is {CORES + 1} and the largest node of this cluster has {CORES} cores"
    assert done.stderr.splitlines()[-1].startswith(f"controlnext: error: {told}")


def _time(output: Path, name: str) -> int:
    return (output / f"{name}.png").stat().st_mtime_ns
