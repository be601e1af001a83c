"""Names that clash, files that were damaged, patterns and clips: nothing is lost or overwritten unsaid."""

from __future__ import annotations

import json
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from controlnext.errors import InputError
from controlnext.runtime.bulk.jobs import Job, read_jobs
from controlnext.runtime.bulk.results import JobResults
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from controlnext.runtime.media.video_files import write_clip
from controlnext.runtime.ray_cluster import ReplicaRange
from support.idle_clips import idle_pipeline, no_noise
from support.recipe import drawing


def written(directory: Path, *rows: Any) -> Path:
    path = directory / "jobs.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_no_job_overwrites_an_image_of_several_prompts(tmp_path: Path) -> None:
    """A list of prompts makes as many images, and with several for each prompt their product."""
    two = {"id": "p", "prompt": ["a", "b"], "num_images_per_prompt": 2}
    jobs = read_jobs(written(tmp_path, two, {"id": "p-4"}, {"id": "p-5"}))
    assert [job.id for job in jobs] == ["p", "line-2", "p-5"]
    assert "the id 'p-4' names a file of another job" in str(jobs[1].problem)


def test_ids_differ_in_more_than_case(tmp_path: Path) -> None:
    """There are file systems on which they would name one file."""
    jobs = read_jobs(written(tmp_path, {"id": "Cat"}, {"id": "cat"}, {"id": "LINE-2"}))
    assert [job.id for job in jobs] == ["Cat", "line-2+", "LINE-2"]
    assert "the id 'cat' names a file of another job" in str(jobs[1].problem)


def test_every_bad_line_has_a_record_of_its_own(tmp_path: Path) -> None:
    """Also beside a job that is called as the line would be, wherever that stands."""
    for name in ("x.png", "x.jpg", "x.bmp"):
        (tmp_path / name).touch()
    rows = ({"id": "line-2", "prompt": "a"}, "{", {"id": "x", "control_glob": "x.*"}, {"id": "line-3"})
    jobs = read_jobs(written(tmp_path, *rows))
    assert [job.id for job in jobs] == ["line-2", "line-2+", "x-x", "line-3+", "line-3++", "line-3"]
    assert [job.problem is None for job in jobs] == [True, False, True, False, False, True]


def test_a_pattern_is_relative_to_the_jobs_and_not_to_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "more").mkdir(parents=True)
    (tmp_path / "data" / "more" / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    for pattern in ("more/*.png", "**/a.png", f"{tmp_path}/da*/m*/*.png"):
        (job,) = read_jobs(written(Path("data"), {"control_glob": pattern}))
        assert job.arguments["control_image"] == str(tmp_path / "data" / "more" / "a.png")


def test_null_is_an_argument_that_is_left_out(tmp_path: Path) -> None:
    (job,) = read_jobs(written(tmp_path, {"id": None, "prompt": "a", "seed": None}))
    assert (job.id, dict(job.arguments)) == ("1", {"prompt": "a"})


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    job, content = Job("a", {"seed": 1}), b"an image"
    record = {"id": "a", "job": job.digest, "files": ["a.png"], "checksum": [sha256(content).hexdigest()]}
    written(tmp_path, record).rename(tmp_path / "results.jsonl")
    (tmp_path / "a.png").write_bytes(content)
    assert JobResults(tmp_path).done(job) == record
    (tmp_path / "a.png").write_bytes(content[:5])
    assert JobResults(tmp_path).done(job) is None


@pytest.mark.parametrize("max_rows", [0, -1, True, 1.5])
def test_rows_are_a_positive_integer(max_rows: Any) -> None:
    with pytest.raises(InputError, match=r"max_rows is .* it must be an integer of at least 1") as caught:
        BulkSpec("b", "r", "o", "auto", "cpu", 1, max_rows, ReplicaRange())
    assert caught.value.argument == "max_rows"


def test_clips_of_patterns_and_videos_with_their_pace(tmp_path: Path) -> None:
    """A pattern is a clip in natural order; a video gives its pace to the result, and `fps` another."""
    frames = [drawing(number, 24, 16) for number in range(3)]
    for number, frame in zip((1, 2, 10), frames, strict=True):
        frame.save(tmp_path / f"f-{number}.png")
    write_clip(tmp_path / "control.mp4", iter(frames), Fraction(12))
    listed = ["f-1.png", "f-2.png", "f-10.png"]
    given = {"image": "f-1.png", "num_inference_steps": 2, "seed": 1, "num_frames": 2}
    jobs = [
        Job("pattern", {**given, "control_images": "f-*.png"}),
        Job("list", {**given, "control_images": listed}),
        Job("same", {**given, "control_images": listed, "fps": 7}),
        Job("video", {**given, "control_images": "control.mp4"}),
        Job("quick", {**given, "control_images": listed, "fps": 12}),
        Job("odd", {**given, "control_images": listed, "fps": "x"}),
        Job("none", {**given, "control_images": "none-*.png"}),
    ]
    spec = BulkSpec(str(tmp_path / "clips"), str(tmp_path), str(tmp_path), "auto", "cpu", 1, max_rows=2)
    with idle_pipeline(tmp_path / "clips", no_noise) as pipe:
        ledger = JobResults(tmp_path).whole()
        records = {record["id"]: record for record in do_jobs(pipe, jobs, spec, ledger)}
    sums = {name: record.get("checksum") for name, record in records.items()}
    assert sums["pattern"] == sums["list"] == sums["same"] != sums["quick"]
    assert "fps is 'x'; it must be a number" in records["odd"]["error"]
    assert "none-*.png" in records["none"]["error"]
    assert _pace(tmp_path / "video.mp4") == _pace(tmp_path / "quick.mp4") == 12


def _pace(path: Path) -> Fraction | None:
    import av

    with av.open(path) as video:
        return video.streams.video[0].average_rate
