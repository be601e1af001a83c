"""Jobs that choose LoRAs, by paths relative to the file of jobs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from controlnext.runtime.bulk.basis import with_basis
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.results import JobResults
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from support.fake_bundle import write_fake_bundle
from support.fake_loras import write_fake_lora
from support.recipe import drawing
from support.serving import open_pipeline

CALL: dict[str, Any] = {
    "prompt": "a red circle",
    "control_image": "control.png",
    "num_inference_steps": 4,
    "sampler": "ddim",
    "seed": 3,
}


def test_jobs_have_their_loras(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle", lora_rank=4)
    drawing(1, 24, 16).save(tmp_path / "control.png")
    (tmp_path / "styles").mkdir()
    (tmp_path / "out").mkdir()
    write_fake_lora(tmp_path / "styles" / "ink.safetensors", 1)
    loras = {"with": {"styles/ink.safetensors": 0.8}, "without": None, "wrong": {"none.safetensors": 1.0}}
    jobs = [Job(name, {**CALL, "lora": lora}) for name, lora in loras.items()]
    spec = BulkSpec(str(bundle), str(tmp_path), str(tmp_path / "out"), "auto", "cpu", 1, max_rows=4)
    with open_pipeline(bundle) as pipe, closing(JobResults(tmp_path / "out").whole()) as ledger:
        records = {record["id"]: record for record in do_jobs(pipe, jobs, spec, ledger)}
        pipe.add_lora("ink", tmp_path / "styles" / "ink.safetensors")
        given = {**CALL, "control_image": drawing(1, 24, 16)}
        wanted = {"with": pipe(**given, lora={"ink": 0.8}), "without": pipe(**given)}
    for name, output in wanted.items():
        with Image.open(tmp_path / "out" / records[name]["files"][0]) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(output.images[0]))
    assert "none.safetensors does not exist" in records["wrong"]["error"]


def test_a_job_whose_lora_has_changed_is_another_one(tmp_path: Path) -> None:
    job = Job("one", {**CALL, "lora": {"ink.safetensors": 1.0}})
    digests = set()
    for seed in (1, 1, 2):
        write_fake_lora(tmp_path / "ink.safetensors", seed)
        digests.add(with_basis([job], tmp_path, "bundle")[0].digest)
    assert len(digests) == 2
