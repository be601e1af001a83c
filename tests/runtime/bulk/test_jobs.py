"""The jobs of a file: what each line means, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from controlnext.errors import InputError
from controlnext.runtime.bulk.jobs import read_jobs


def lines(directory: Path, *rows: Any) -> Path:
    path = directory / "jobs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_line_is_a_job_and_its_number_the_id(tmp_path: Path) -> None:
    jobs = read_jobs(lines(tmp_path, {"prompt": "a"}, "", {"id": "b-1", "seed": 2}, {"id": 7}))
    assert [(job.id, dict(job.arguments), job.problem) for job in jobs] == [
        ("1", {"prompt": "a"}, None),
        ("b-1", {"seed": 2}, None),
        ("7", {}, None),
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"id": "../x"}', "the id '../x' cannot name a file; give letters"),
        ('{"id": ".hidden"}', "cannot name a file"),
        ('{"id": true}', "cannot name a file"),
        ('{"id": "a"}', "the id 'a' names a file of another job"),
        ('{"id": "two-1"}', "the id 'two-1' names a file of another job"),
        ('{"control_glob": "none/*.png"}', "no file matches control_glob 'none/*.png'"),
        (
            '{"control_glob": "*.png", "control_image": "a.png"}',
            "control_image and control_glob are both given",
        ),
        ('{"control_glob": 3}', "no file matches control_glob 3"),
    ],
)
def test_a_bad_line_is_a_job_with_a_problem(tmp_path: Path, row: str, problem: str) -> None:
    """It has an id of its own, and the others are read."""
    first = {"id": "a"}
    jobs = read_jobs(lines(tmp_path, first, row, {"id": "two", "num_images_per_prompt": 2}))
    if "two-1" in row:
        jobs = read_jobs(lines(tmp_path, {"id": "two", "num_images_per_prompt": 2}, row, {"id": "z"}))
    assert len({job.id for job in jobs}) == 3
    assert problem in str(jobs[1].problem)
    assert (jobs[0].problem, jobs[2].problem) == (None, None)


def test_a_pattern_is_a_job_for_each_file(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.txt"):
        (tmp_path / name).touch()
    for pattern in ("*.png", str(tmp_path / "*.png")):
        jobs = read_jobs(lines(tmp_path, {"id": "x", "prompt": "p", "control_glob": pattern}))
        assert [job.id for job in jobs] == ["x-a", "x-b"]
        assert [job.arguments["control_image"] for job in jobs] == [
            str(tmp_path / n) for n in ("a.png", "b.png")
        ]


def test_a_table_is_read_without_its_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "jobs.parquet"
    columns = {"id": ["a", "b"], "prompt": ["p", "q"], "seed": [1, None]}
    parquet.write_table(pyarrow.table(columns), path)
    assert [dict(job.arguments) for job in read_jobs(path)] == [{"prompt": "p", "seed": 1}, {"prompt": "q"}]


def test_a_file_of_something_else_is_not_a_file_of_bad_jobs(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\n\x00\n\xff\n")
    with pytest.raises(InputError, match=r"cannot read .*picture.png: line 1 is not JSON"):
        read_jobs(tmp_path / "picture.png")


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "damaged.parquet", "empty.jsonl"])
def test_files_without_jobs_are_refused(tmp_path: Path, name: str) -> None:
    if not name.startswith("none"):
        (tmp_path / name).write_text("\n")
    with pytest.raises(InputError, match=r"cannot read .*none|cannot read .*damaged|has no job") as caught:
        read_jobs(tmp_path / name)
    assert caught.value.argument == "jobs"


def test_a_job_whose_arguments_changed_is_another_one(tmp_path: Path) -> None:
    (one, same, other) = (
        read_jobs(lines(tmp_path, row))[0]
        for row in ({"prompt": "a", "seed": 1}, {"seed": 1, "prompt": "a"}, {"prompt": "a", "seed": 2})
    )
    assert one.digest == same.digest != other.digest
