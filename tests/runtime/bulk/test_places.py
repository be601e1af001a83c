"""What is not of an earlier run is never replaced: jobs, what they read, files of somebody else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from controlnext.errors import InputError
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.ledger import LEDGER
from controlnext.runtime.bulk.places import Places
from controlnext.runtime.bulk.results import open_results
from controlnext.runtime.bulk.table import TABLE, write_table


def prepare(jobs: Path, output: Path, *asked: Job, suffix: str = ".png") -> Sequence[Job]:
    with open_results(output) as results:
        return results.prepare(asked, Places(jobs, output, suffix, jobs.suffix == ".parquet"))


def refused(error: str, jobs: Path, output: Path, *asked: Job) -> None:
    """Check that nothing in the directory of the results is changed, whatever they are."""
    before = {path: path.read_bytes() for path in output.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=error) as caught:
        prepare(jobs, output, *asked)
    assert caught.value.argument == "output"
    assert {path: path.read_bytes() for path in before} == before


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"id":"c0","control_image":"c0.png"}\n')
    return path


@pytest.mark.parametrize(
    "content", ['{"id":"c0","control_image":"c0.png"}', "{}\n", "notes\n", '{"id":"a","error":"x"}\nnotes\n']
)
def test_a_file_that_is_no_ledger(jobs: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / LEDGER).write_text(content)
    refused(f"{LEDGER} is not the ledger of a bulk run; move it", jobs, tmp_path, Job("c0"))


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"files": value}
            for value in ("c0.png", 1, [1], {}, ["../c0.png"], [".."], ["/c0.png"], [""], [".x"])
        ),
        {"files": ["a.png", "b.png"], "checksum": ["x"]},
        {"files": ["a.png"], "checksum": 1},
        {"error": {"a": 1}},
    ],
)
def test_a_record_names_files_of_its_directory(jobs: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    """Others would be read, and their checksums be held against what the ledger says."""
    (tmp_path / LEDGER).write_text(json.dumps({"id": "c0", "job": "x", **fields}) + "\n")
    refused(f"{LEDGER} is not the ledger of a bulk run", jobs, tmp_path, Job("c0"))


@pytest.mark.parametrize("last", ["", '{"id":"b","jo', "\0\0"])
def test_a_ledger_whose_process_was_killed(jobs: Path, tmp_path: Path, last: str) -> None:
    (tmp_path / LEDGER).write_text('{"id":"a","job":"x","error":"y"}\n' + last)
    assert prepare(jobs, tmp_path, Job("a")) == [Job("a")]


def test_the_jobs_are_not_the_ledger(tmp_path: Path) -> None:
    jobs = tmp_path / LEDGER
    jobs.write_text('{"id":"a","job":"x","error":"y"}\n')
    refused("the results would replace the jobs in", jobs, tmp_path, Job("a"))


def test_a_table_of_something_else(tmp_path: Path) -> None:
    """Nor is the table of the jobs; that of an earlier run is replaced."""
    jobs = tmp_path / "jobs.parquet"
    for path in (jobs, tmp_path / TABLE):
        parquet.write_table(pyarrow.table({"id": ["a"]}), path)
    refused("is not a table of the results of a bulk run", jobs, tmp_path, Job("a"))
    refused("the results would replace the jobs in", tmp_path / TABLE, tmp_path, Job("a"))
    write_table(tmp_path / TABLE, [{"id": "a", "job": "x", "error": "y"}])
    assert prepare(jobs, tmp_path, Job("a"))


@pytest.mark.parametrize("name", ["c0.png", "../out/c0.png", "*.png", "linked.png"])
def test_an_image_that_a_job_reads(jobs: Path, tmp_path: Path, name: str) -> None:
    """However it is called, whichever job reads it, and if it was made by a job."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "c0.png").write_bytes(b"image")
    (output / "linked.png").symlink_to("c0.png")
    reader = Job("a", {"control_images": [f"out/{name}"]})
    told = "the result of job c0 would replace .*c0.png, which job a reads"
    refused(told, jobs, output, Job("c0"), reader)
    record = {"id": "c0", "job": "x", "files": ["c0.png"], "checksum": [sha256(b"image").hexdigest()]}
    (output / LEDGER).write_text(json.dumps(record) + "\n")
    refused(told, jobs, output, Job("c0"), reader)
    # two images have other names, but that one would go
    refused(told, jobs, output, Job("c0", {"num_images_per_prompt": 2}), reader)


@pytest.mark.parametrize("name", ["c0-2.png", "c0-1.png"])
def test_a_file_of_somebody_else(jobs: Path, tmp_path: Path, name: str) -> None:
    """Of as many images as the job makes, and with the suffix that they have."""
    asked = Job("c0", {"num_images_per_prompt": 2})
    for other in ("c0.png", "c0-3.png", "c0-1.mp4"):
        (tmp_path / other).write_bytes(b"mine")
    prepare(jobs, tmp_path, asked)
    (tmp_path / name).write_bytes(b"mine")
    refused(f"would replace .*{name}, which is not of an earlier run; move it", jobs, tmp_path, asked)
    assert prepare(jobs, tmp_path, Job("c0", {}, "cannot be done")) == [Job("c0", {}, "cannot be done")]


def test_a_directory_in_the_place_of_a_result(jobs: Path, tmp_path: Path) -> None:
    (tmp_path / "c0.png").mkdir()
    refused("c0.png, which is not of an earlier run", jobs, tmp_path, Job("c0"))


@pytest.mark.parametrize("name", [LEDGER, TABLE, ".lock", ".parts/a.jsonl"])
def test_a_directory_in_the_place_of_a_file_of_ours(jobs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    refused(f"{name} is a directory, where a file belongs; move it", jobs, tmp_path, Job("c0"))


def test_a_file_in_the_place_of_a_directory_of_ours(jobs: Path, tmp_path: Path) -> None:
    """And a lock of somebody else."""
    (tmp_path / ".parts").touch()
    refused(".parts is a file, where a directory belongs; move it", jobs, tmp_path, Job("c0"))
    (tmp_path / ".parts").unlink()
    (tmp_path / ".lock").write_text("mine")
    refused(".lock is not the lock of a bulk run; move it", jobs, tmp_path, Job("c0"))


@pytest.mark.parametrize("name", [".parts", LEDGER, ".lock"])
def test_a_link_in_the_place_of_something_of_ours(jobs: Path, tmp_path: Path, name: str) -> None:
    """Behind it is somebody else's, and is not removed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).symlink_to(tmp_path / "elsewhere")
    refused(f"{name} is a link, where results have files of their own", jobs, tmp_path / "results", Job("c0"))
    assert (tmp_path / "elsewhere" / "mine").exists()
