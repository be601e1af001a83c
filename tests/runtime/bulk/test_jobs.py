"""The jobs of a file: what each line means, and what is wrong with it."""

from __future__ import annotations

import codecs
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from controlnext.errors import InputError
from controlnext.runtime.bulk.jobs import Job, read_jobs


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
        ('{"control_glob": 3}', "control_glob is 3; it must be a text"),
        ('{"control_glob": ["*.png"]}', "control_glob is ['*.png']; it must be a text"),
        ('{"control_glob": "."}', "no file matches control_glob '.'"),
        ('{"control_glob": "/"}', "no file matches control_glob '/'"),
        ('{"control_glob": "%s"}' % ("x" * 300), "no file matches control_glob 'xxx"),
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


def test_an_empty_pattern_is_as_if_left_out(tmp_path: Path) -> None:
    (job,) = read_jobs(lines(tmp_path, {"control_glob": "", "control_image": "a.png"}))
    assert (dict(job.arguments), job.problem) == ({"control_image": "a.png"}, None)


def test_images_whose_names_are_no_ids_have_safe_ones(tmp_path: Path) -> None:
    """The same in every run, each another, and not too long."""
    names = ["\u00e4 b", "\u00f6 b", "_ b", "x" * 200]
    for name in names:
        (tmp_path / f"{name}.png").touch()
    jobs = read_jobs(path := lines(tmp_path, {"id": "a", "control_glob": "*.png"}))
    assert [job.problem for job in jobs] == [None] * len(names)
    assert {Path(job.arguments["control_image"]).stem for job in jobs} == {*names}
    assert {job.id[:5] for job in jobs} == {"a-__b", "a-xxx"}
    assert len({job.id for job in jobs}) == len(names)
    assert max(len(job.id) for job in jobs) == 128
    assert read_jobs(path) == jobs


def test_two_images_of_one_name_are_told(tmp_path: Path) -> None:
    """The files, as nobody gave that id; and a name that cannot be written down."""
    for name in ("c0.jpg", "c0.png", "c1.png"):
        (tmp_path / name).touch()
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    jobs = read_jobs(lines(tmp_path, {"id": "a", "control_glob": "*.*g"}, {"id": "a-c1"}))
    assert [job.id for job in jobs] == ["a-c0", "line-1", "a-c1", "line-1+", "line-2"]
    assert [job.problem is None for job in jobs] == [True, False, True, False, False]
    told = f"{tmp_path}/c0.jpg and {tmp_path}/c0.png have the same name"
    assert str(jobs[1].problem).startswith(told)
    assert "is not UTF-8; rename the file" in str(jobs[3].problem)
    assert "the id 'a-c1' names a file of another job, that of line 1; give another" in str(jobs[4].problem)


def test_a_table_is_read_without_its_empty_cells(tmp_path: Path) -> None:
    """They make floats of integers; decimals are numbers as others are."""
    path = tmp_path / "jobs.parquet"
    columns = {
        "id": [1.0, None],
        "prompt": ["p", "q"],
        "seed": [Decimal(2**64 - 1), None],
        "num_inference_steps": [4.0, None],
        "guidance_scale": [Decimal("3.50"), Decimal("3.00")],
        "control_scale": [float("nan"), 0.5],
        "timesteps": [[9.0, 5.0], None],
        "sigmas": [1e300, float("inf")],
    }
    parquet.write_table(pyarrow.table(columns), path)
    first, second = read_jobs(path)
    assert (first.id, second.id) == ("1", "2")
    assert json.dumps(first.arguments) == json.dumps(
        {
            "prompt": "p",
            "seed": 2**64 - 1,
            "num_inference_steps": 4,
            "guidance_scale": 3.5,
            "timesteps": [9, 5],
            "sigmas": 1e300,
        }
    )
    assert dict(second.arguments) == {
        "prompt": "q",
        "guidance_scale": 3,
        "control_scale": 0.5,
        "sigmas": float("inf"),
    }


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = lines(tmp_path, {"id": "a"}, {"id": "b"})
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read_jobs(path) == [Job("a"), Job("b")]


def test_a_table_without_rows_has_no_job(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"id": pyarrow.array([], pyarrow.string())}), tmp_path / "jobs.parquet")
    with pytest.raises(InputError, match=r"jobs.parquet has no job; give a file with one row for each"):
        read_jobs(tmp_path / "jobs.parquet")


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
