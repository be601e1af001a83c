"""Jobs are done as calls of the pipeline, each once, whatever happens to the process."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from controlnext.errors import BundleError, OutOfMemoryError
from controlnext.runtime import Pipeline
from controlnext.runtime.bulk.basis import with_basis
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.ledger import LEDGER
from controlnext.runtime.bulk.results import JobResults
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from support.fake_bundle import write_fake_bundle
from support.idle_clips import idle_pipeline, no_noise
from support.recipe import drawing
from support.serving import open_pipeline
from support.start_images import mask, photo

CALL: dict[str, Any] = {
    "prompt": "a red circle",
    "control_image": "control.png",
    "num_inference_steps": 4,
    "sampler": "ddim",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("bulk") / "toy")


@pytest.fixture
def spec(tmp_path: Path, toy: Path) -> BulkSpec:
    drawing(1, 24, 16).save(tmp_path / "control.png")
    (tmp_path / "out").mkdir()
    return BulkSpec(str(toy), str(tmp_path), str(tmp_path / "out"), "auto", "cpu", 1, max_rows=3)


def test_jobs_start_from_images_that_are_paths(tmp_path: Path, spec: BulkSpec) -> None:
    """A changed mask makes it another job."""
    toy = write_fake_bundle(tmp_path / "encoding", encoder=True)
    images = {"image": photo(2, 24, 16), "mask_image": mask(24, 16)}
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    given = {**CALL, "seed": 1, "overlay": True, **{name: f"{name}.png" for name in images}}
    job = Job("one", given)
    (record,) = done(replace(spec, bundle=str(toy)), job).values()
    with open_pipeline(toy) as pipe:
        control = Image.open(tmp_path / "control.png")
        (wanted,) = pipe(**{**given, **images, "control_image": control}).images
    with Image.open(tmp_path / "out" / record["files"][0]) as made:
        np.testing.assert_array_equal(np.asarray(made), np.asarray(wanted))
    (before,) = with_basis([job], tmp_path, "bundle")
    images["mask_image"].rotate(90).save(tmp_path / "mask_image.png")
    (after,) = with_basis([job], tmp_path, "bundle")
    assert before.digest != after.digest


def done(spec: BulkSpec, *jobs: Job) -> dict[str, dict[str, Any]]:
    with open_pipeline(Path(spec.bundle)) as pipe:
        return by_id(pipe, jobs, spec)


def by_id(pipe: Pipeline, jobs: Iterable[Job], spec: BulkSpec) -> dict[str, dict[str, Any]]:
    with closing(JobResults(Path(spec.output)).whole()) as ledger:
        return {record["id"]: record for record in do_jobs(pipe, jobs, spec, ledger)}


def test_results_are_those_of_calls(spec: BulkSpec) -> None:
    jobs = [Job(f"job-{seed}", {**CALL, "seed": seed, "num_inference_steps": 4 + seed}) for seed in range(6)]
    records = done(spec, *jobs)
    assert len({record["checksum"][0] for record in records.values()}) == len(jobs)
    with open_pipeline(Path(spec.bundle)) as pipe:
        for job in jobs:
            given = {**job.arguments, "control_image": Image.open(Path(spec.root) / "control.png")}
            (wanted,) = pipe(**given).images
            path = Path(spec.output) / f"{job.id}.png"
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(wanted))
            record = records[job.id]
            assert record["files"] == [path.name]
            assert record["checksum"] == [sha256(path.read_bytes()).hexdigest()]
            assert (record["seed"], record["backend"]) == (job.arguments["seed"], pipe.backend)


def test_several_images_and_a_random_seed(spec: BulkSpec) -> None:
    """The seed is told, and makes the same images again."""
    first = done(spec, Job("a", {**CALL, "num_images_per_prompt": 2}))["a"]
    assert first["files"] == ["a-1.png", "a-2.png"]
    again = done(spec, Job("b", {**CALL, "num_images_per_prompt": 2, "seed": first["seed"]}))["b"]
    assert again["checksum"] == first["checksum"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({**CALL, "contol_scale": 1}, "there is no argument 'contol_scale'; did you mean control_scale?"),
        ({**CALL, "output_type": "np"}, "there is no argument 'output_type'"),
        ({**CALL, "control_image": "none.png"}, "cannot read image"),
        ({**CALL, "control_image": 3}, "an image is 3; give the path of a file"),
        ({**CALL, "num_inference_steps": 0}, "num_inference_steps is 0"),
        ({**CALL, "sampler": "none"}, "unknown sampler 'none'"),
        ({**CALL, "timesteps": [9, 5]}, "`num_inference_steps` and `timesteps` were given; give one of them"),
        ({**CALL, "prompt": 5}, "prompt"),
        ({}, "no prompt was given; set `prompt`"),
        (
            {**CALL, "num_inference_steps": 10**8},
            "num_inference_steps is 100000000; it must be",
        ),
        ({**CALL, "num_images_per_prompt": 10**9}, "makes 1000000000 images; give at most 10000 a job"),
    ],
)
def test_a_bad_job_is_recorded_and_stops_no_other(
    spec: BulkSpec, arguments: dict[str, Any], error: str
) -> None:
    records = done(spec, Job("bad", arguments), Job("good", CALL), Job("worse", {}, "line 3 is not JSON"))
    assert error in records["bad"]["error"]
    assert records["good"]["files"] == ["good.png"]
    assert records["worse"]["error"] == "line 3 is not JSON"


@pytest.mark.parametrize("graph", ["unet", "text_encoder", "vae_decoder"])
def test_a_damaged_bundle_is_no_fault_of_the_jobs(tmp_path: Path, spec: BulkSpec, graph: str) -> None:
    """It is told once, when it is found, and no job has failed."""
    bundle = shutil.copytree(spec.bundle, tmp_path / "damaged")
    path = bundle / graph / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model.onnx is damaged"):
        done(replace(spec, bundle=str(bundle)), *(Job(str(number), CALL) for number in range(5)))
    assert not (Path(spec.output) / LEDGER).read_bytes()
    assert not list(Path(spec.output).glob("*.p*"))


def test_what_a_job_may_change_to_need_less_memory(spec: BulkSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no `offload`."""
    error = OutOfMemoryError(16, 8, ("vae_tiling", "offload"), "no room")
    with open_pipeline(Path(spec.bundle)) as pipe:
        monkeypatch.setattr(pipe, "finish", Mock(side_effect=error))
        told = by_id(pipe, [Job("a", CALL)], spec)["a"]["error"]
    assert told.endswith("(no room); to need less, change `height`, `width`, `vae_tiling`")


def test_clips(tmp_path: Path) -> None:
    frames = [drawing(number, 24, 16) for number in range(3)]
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{number}.png")
    spec = BulkSpec(str(tmp_path / "clips"), str(tmp_path), str(tmp_path), "auto", "cpu", 1, max_rows=2)
    given = {"image": "frames/0.png", "num_inference_steps": 2, "seed": 1}
    listed = [f"frames/{number}.png" for number in range(3)]
    jobs = [
        Job("directory", {**given, "control_images": "frames"}),
        Job("list", {**given, "control_images": listed}),
        Job("none", {**given, "control_images": "nowhere"}),
        Job("number", {**given, "control_images": 3}),
    ]
    with idle_pipeline(tmp_path / "clips", no_noise) as pipe:
        records = by_id(pipe, jobs, spec)
    assert records["directory"]["files"] == ["directory.mp4"]
    assert records["directory"]["checksum"] == records["list"]["checksum"]
    assert "nowhere" in records["none"]["error"]
    assert "control_images is 3" in records["number"]["error"]


def test_kills_lose_nothing(tmp_path: Path, toy: Path) -> None:
    """A process that is killed at random moments and started again leaves each result once, and whole."""
    count, chance = 24, random.Random(3)
    drawing(1, 256, 256).save(tmp_path / "control.png")
    jobs, output = tmp_path / "jobs.jsonl", tmp_path / "out"
    rows = ({**CALL, "id": f"job-{seed}", "seed": seed, "num_inference_steps": 8} for seed in range(count))
    jobs.write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "controlnext", "batch", str(toy), f"--jobs={jobs}", f"--output={output}"]
    for mark in (1, 12):
        with subprocess.Popen([*command, "--max-rows=2"], stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + 60
            while len(list(output.glob("*.png"))) < mark and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
    ran = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    summary = json.loads(ran.stdout)
    assert 0 < summary["done_before"] < count
    assert summary["done"] + summary["done_before"] == count
    records = [json.loads(line) for line in (output / LEDGER).read_text().splitlines()]
    assert [record["id"] for record in records] == [f"job-{seed}" for seed in range(count)]
    for record in records:
        content = (output / record["files"][0]).read_bytes()
        assert record["checksum"] == [sha256(content).hexdigest()]
    assert len({record["checksum"][0] for record in records}) == count
    kept = [name for name, time_ns in before.items() if (output / name).stat().st_mtime_ns == time_ns]
    # an image without its line may be made once more
    assert len(kept) >= len(before) - 2


def test_a_pipeline_is_closed_by_its_owner(spec: BulkSpec) -> None:
    with open_pipeline(Path(spec.bundle)) as pipe:
        jobs = [Job(name, CALL) for name in "abcd"]
        records = do_jobs(pipe, jobs, spec, JobResults(Path(spec.output)).whole())
        assert next(records)["files"]
        records.close()
        assert isinstance(pipe, Pipeline)
        assert pipe("a", control_image=drawing(1, 24, 16), num_inference_steps=1).images
