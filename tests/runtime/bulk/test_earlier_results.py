"""What was made once stays, whatever happens to the job, until what replaces it is there."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.ledger import LEDGER
from controlnext.runtime.bulk.results import JobResults, open_results

OLD, NEW = Job("a", {"seed": 1, "num_images_per_prompt": 2}), Job("a", {"seed": 2})


def written(directory: Path, job: Job, content: bytes = b"image") -> dict[str, Any]:
    """Write the files of a job; return its record."""
    names = [f"{stem}.png" for stem in job.stems]
    for name in names:
        (directory / name).write_bytes(content)
    checksum = [sha256(content).hexdigest()] * len(names)
    return {"id": job.id, "job": job.digest, "files": names, "checksum": checksum}


def into_ledger(directory: Path, *records: dict[str, Any]) -> None:
    (directory / LEDGER).write_text("".join(f"{json.dumps(record)}\n" for record in records))


def ledger(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / LEDGER).read_text().splitlines()]


def images(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.png"))


def failed(job: Job) -> dict[str, Any]:
    return {"id": job.id, "job": job.digest, "error": "no memory"}


@pytest.mark.parametrize("worker", [False, True])
def test_a_result_stays_until_the_new_one_is_there(tmp_path: Path, worker: bool) -> None:
    """With its line; then its files go, those of other jobs and of nobody do not."""
    other = Job("b")
    into_ledger(tmp_path, before := written(tmp_path, OLD), written(tmp_path, other))
    (tmp_path / "mine.png").touch()
    with open_results(tmp_path) as results:
        assert results.prepare([NEW, other]) == [NEW]
        assert ledger(tmp_path)[0] == before
        assert images(tmp_path) == ["a-1.png", "a-2.png", "b.png", "mine.png"]
        adding = results.part("worker") if worker else results.whole()
        adding.add(after := written(tmp_path, NEW))
        adding.close()
        assert results.join([NEW, other], table=False)[0] == after
    assert images(tmp_path) == ["a.png", "b.png", "mine.png"]


@pytest.mark.parametrize("worker", [False, True])
def test_a_result_stays_if_the_new_one_fails(tmp_path: Path, worker: bool) -> None:
    """The error is told beside it; the job is tried again, and as it was before it is done."""
    into_ledger(tmp_path, before := written(tmp_path, OLD))
    for _ in range(2):
        with open_results(tmp_path) as results:
            assert results.prepare([NEW]) == [NEW]
            adding = results.part("worker") if worker else results.whole()
            adding.add(failed(NEW))
            adding.close()
            assert results.join([NEW], table=False) == [{**before, "error": "no memory"}]
        assert ledger(tmp_path) == [{**before, "error": "no memory"}]
        assert images(tmp_path) == ["a-1.png", "a-2.png"]
    with open_results(tmp_path) as results:
        assert results.prepare([OLD]) == []
        assert results.join([OLD], table=False) == [before]


def test_a_job_that_was_not_begun_keeps_its_result(tmp_path: Path) -> None:
    into_ledger(tmp_path, before := written(tmp_path, OLD))
    with open_results(tmp_path) as results:
        results.prepare([NEW])
        assert results.join([NEW], table=False) == [before]


def test_a_record_without_its_files_is_not_that_of_a_result(tmp_path: Path) -> None:
    """It is written first: of a process that was killed between the two the earlier result counts."""
    before = written(tmp_path, OLD)
    after = {**before, "job": NEW.digest, "files": ["a.png"], "checksum": ["0"]}
    into_ledger(tmp_path, before, after)
    with open_results(tmp_path) as results:
        assert results.prepare([NEW]) == [NEW]
        assert ledger(tmp_path) == [before]
    assert JobResults(tmp_path).done(OLD) == before


def test_what_is_left_of_a_damaged_result_is_known(tmp_path: Path) -> None:
    """It is no result, and it is not taken for a file of somebody else."""
    into_ledger(tmp_path, before := written(tmp_path, OLD))
    (tmp_path / "a-1.png").unlink()
    with open_results(tmp_path) as results:
        assert results.prepare([OLD]) == [OLD]
        assert results.join([OLD], table=False) == [{**before, "job": ""}]
    assert images(tmp_path) == ["a-2.png"]


def test_a_result_gives_way_to_a_job_with_its_files(tmp_path: Path) -> None:
    """Of a job that is no longer asked for: when that is done, and with those files alone."""
    new, other = Job("a-2"), Job("b")
    into_ledger(tmp_path, before := written(tmp_path, OLD), written(tmp_path, other))
    with open_results(tmp_path) as results:
        assert results.prepare([new]) == [new]
        assert [record["id"] for record in ledger(tmp_path)] == ["a", "b"]
        results.whole().add(failed(new))
        results.join([new], table=False)
        assert ledger(tmp_path)[1] == before
        results.whole().add(written(tmp_path, new, b"another"))
        results.join([new], table=False)
    left = {**before, "job": "", "files": ["a-1.png"], "checksum": before["checksum"][:1]}
    assert ledger(tmp_path)[1:] == [left, ledger(tmp_path)[2]]
    assert images(tmp_path) == ["a-1.png", "a-2.png", "b.png"]
