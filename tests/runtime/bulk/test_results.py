"""The conditions under which a job is done: its record is whole, and that of its files, bundle and inputs."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import parquet

from controlnext.errors import InputError, WorkError
from controlnext.runtime.bulk import results as module
from controlnext.runtime.bulk.basis import with_basis
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.ledger import LEDGER, Ledger
from controlnext.runtime.bulk.places import Places
from controlnext.runtime.bulk.results import JobResults, open_results
from controlnext.runtime.bulk.table import write_table
from controlnext.runtime.bulk.work import BulkSpec
from controlnext.runtime.ray_cluster import ReplicaRange, check_room
from support.fake_bundle import write_fake_bundle


def record_of(job: Job, content: bytes) -> dict[str, Any]:
    """Return the record of a job whose file has this content."""
    checksum = [sha256(content).hexdigest()]
    return {"id": job.id, "job": job.digest, "files": [f"{job.id}.png"], "checksum": checksum}


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    jobs = [Job("a", {"seed": 1}), Job("b", {"seed": 2}), Job("c", {"seed": 3}), Job("d", {})]
    (tmp_path / "a.png").touch()
    record = {"id": "a", "job": jobs[0].digest, "files": ["a.png"], "seed": 1}
    others = [{**record, "id": name, "job": "other", "files": [f"{name}.png"]} for name in "bc"]
    failed = {"id": "d", "job": jobs[3].digest, "error": "no memory"}
    torn = b'{"id": "z", "fil'
    (tmp_path / LEDGER).write_bytes(
        b"\n".join([*(json.dumps(one).encode() for one in (record, *others, failed)), torn])
    )
    (tmp_path / ".results.0123abcd.partial").mkdir()
    with open_results(tmp_path) as results:
        assert results.prepare(jobs) == jobs[1:]
        with pytest.raises(InputError, match="another process writes to") as caught, open_results(tmp_path):
            pass
        assert caught.value.argument == "output"
        part = results.part("worker")
        part.add({"id": "c", "job": jobs[2].digest, "files": ["c.png"], "seed": 3})
        part.close()
        found = results.join(jobs, table=True)
    assert [one["id"] for one in found] == ["a", "c"]
    assert [json.loads(line)["id"] for line in (tmp_path / LEDGER).read_text().splitlines()] == ["a", "c"]
    assert not list(tmp_path.glob(".*partial"))
    assert not list((tmp_path / ".parts").iterdir())
    assert (tmp_path / "results.parquet").is_file()


@pytest.mark.parametrize("written", [b"first", b"second", b"neither"])
def test_of_two_workers_the_record_of_the_file_counts(tmp_path: Path, written: bytes) -> None:
    """Whichever ledger is read first; without one the job has failed, and is done again."""
    job = Job("a", {"prompt": "x"})
    with open_results(tmp_path) as results:
        results.prepare([job])
        for name, content in (("2", b"first"), ("1", b"second")):
            part = results.part(name)
            part.add(record_of(job, content))
            part.close()
        (tmp_path / "a.png").write_bytes(written)
        (found,) = results.join([job], table=False)
    if written == b"neither":
        assert "its files are not as written; run again" in found["error"]
        assert JobResults(tmp_path).done(job) is None
    else:
        assert found == JobResults(tmp_path).done(job) == record_of(job, written)


def test_a_worker_finds_what_another_did_meanwhile(tmp_path: Path) -> None:
    """But no line that is not whole yet, and no record of another job."""
    job, other = Job("a", {"prompt": "x"}), Job("a", {"prompt": "y"})
    first, second = JobResults(tmp_path), JobResults(tmp_path)
    first.part("first").add(record_of(job, b"image"))
    (tmp_path / "a.png").write_bytes(b"image")
    assert second.done(job) is None
    second.look()
    assert second.done(job)
    assert second.done(other) is None
    line = json.dumps(record_of(other, b"image"))
    ledger = tmp_path / ".parts" / "torn.jsonl"
    ledger.write_text(line[:-1])
    second.look()
    assert second.done(other) is None
    ledger.write_text(f"{line}\n")
    second.look()
    assert second.done(other)


def test_a_record_that_lacks_the_end_of_its_line_counts(tmp_path: Path) -> None:
    """Its file was renamed after it was on the disk: it would be a file that is not of an earlier run."""
    jobs = [Job("a"), Job("b")]
    records = [record_of(job, b"image") for job in jobs]
    (tmp_path / LEDGER).write_bytes(b"\n".join(json.dumps(one).encode() for one in records))
    for job in jobs:
        (tmp_path / f"{job.id}.png").write_bytes(b"image")
    (tmp_path / "jobs.jsonl").touch()
    with open_results(tmp_path) as results:
        assert not results.prepare(jobs, Places(tmp_path / "jobs.jsonl", tmp_path, ".png"))
        results.look()
        assert len(results.join(jobs, table=False)) == 2
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 2


def test_nobody_goes_on_while_a_worker_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    part = JobResults(tmp_path).part("worker")
    with pytest.raises(WorkError, match="a worker of an earlier run still writes to"), open_results(tmp_path):
        pass
    part.close()
    with open_results(tmp_path):
        pass


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A line that does not fit is an error, and what was written of it is taken away."""
    ledger, path = Ledger(tmp_path / LEDGER), tmp_path / LEDGER
    ledger.add({"id": "a", "error": "x"})
    whole = path.read_bytes()
    with largest_file(len(whole) + 10), pytest.raises(WorkError, match="cannot write"):
        ledger.add({"id": "b", "error": "x"})
    assert path.read_bytes() == whole
    ledger.add({"id": "c", "error": "x"})
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, write = Ledger(tmp_path / LEDGER), os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:5]))
    ledger.add({"id": "a", "error": "x"})
    assert (tmp_path / LEDGER).read_bytes() == b'{"id":"a","error":"x"}\n'
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(WorkError, match="No space left"):
        ledger.add({"id": "b", "error": "x"})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: what is more is not written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_another_bundle_or_another_file_is_another_job(tmp_path: Path) -> None:
    """Wherever the file is: by itself, in a list, in a directory, by a pattern."""
    (tmp_path / "frames").mkdir()
    for name in ("a.png", "b.png", "frames/1.png"):
        (tmp_path / name).write_bytes(name.encode())
    jobs = [
        Job("0", {"prompt": "x"}),
        Job("1", {"control_image": "a.png"}),
        Job("2", {"control_image": ["a.png", "b.png"]}),
        Job("3", {"control_images": "frames"}),
        Job("4", {"control_images": [["frames/*.png"]], "image": "b.png"}),
        Job("5", {"control_image": "nowhere\0" * 999}),
    ]

    def digests(bundle: str = "one") -> list[str]:
        return [job.digest for job in with_basis(jobs, tmp_path, bundle)]

    before = digests()
    assert before == digests()
    assert not {*before} & {*digests("another")}
    for name, changed in (("a.png", {1, 2}), ("b.png", {2, 4}), ("frames/1.png", {3, 4})):
        (tmp_path / name).write_bytes(b"changed")
        after = digests()
        assert {number for number in range(6) if before[number] != after[number]} == changed
        before = after


def test_a_node_with_another_bundle_is_refused(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "fake")
    spec = BulkSpec(str(bundle), "", "", "auto", "cpu", 1, 1, ReplicaRange(), "another")
    with pytest.raises(InputError, match="is another bundle on") as caught:
        spec.load()
    assert caught.value.argument == "bundle"


@pytest.mark.parametrize("seeds", [[1, None], [2**64 - 1, None, 1], [2**64 - 1, -(2**63)]])
def test_tables_take_every_seed(tmp_path: Path, seeds: list[int | None]) -> None:
    write_table(tmp_path / "t.parquet", [{"id": str(seed), "seed": seed} for seed in seeds])
    assert [int(one) if one is not None else None for one in _seeds(tmp_path)] == seeds


def _seeds(directory: Path) -> list[Any]:
    return parquet.read_table(directory / "t.parquet").column("seed").to_pylist()


@pytest.mark.parametrize(
    ("threads", "device", "error"),
    [
        (4, "cpu", None),
        (2, "cuda", None),
        (5, "cpu", "threads is 5 and the largest node of this cluster has 4 cores"),
        (3, "cuda", "threads is 3 and the largest node of this cluster has 2 cores"),
    ],
)
def test_an_actor_has_to_fit_on_a_node(threads: int, device: str, error: str | None) -> None:
    """With its cores and its GPU on the same one."""
    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 1.0}]
    alive = [{"Alive": number < 2, "Resources": node} for number, node in enumerate(nodes)]
    ray = SimpleNamespace(nodes=lambda: alive)
    if error is None:
        check_room(ray, threads, device, 9, local=False)
        return
    with pytest.raises(InputError, match=error) as caught:
        check_room(ray, threads, device, 9, local=False)
    assert caught.value.argument == "threads"
    with pytest.raises(InputError, match="no node of this cluster has a GPU"):
        check_room(SimpleNamespace(nodes=lambda: alive[:1]), 1, "cuda", 1, local=False)
    with pytest.raises(InputError, match="threads is 2 for 3 replicas and this machine has 4 cores; give 1"):
        check_room(SimpleNamespace(nodes=lambda: alive[:1]), 2, "cpu", 3, local=True)
