"""Image prompts in requests, in jobs and on the command line: images are those of the pipeline's call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.bulk.basis import with_basis
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.results import JobResults
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from support.fake_prompts import colours, write_fake_prompts
from support.recipe import drawing
from support.serving import USUAL, Site, file_of, image_call, open_pipeline, pixels_of, serve, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_prompts(tmp_path_factory.mktemp("prompts") / "bundle", 2)


@pytest.fixture(scope="module")
def site(bundle: Path) -> Iterator[Site]:
    with serve([bundle]) as site:
        yield site


@pytest.fixture(scope="module")
def wanted(bundle: Path) -> np.ndarray:
    """The image of two image prompts."""
    with open_pipeline(bundle) as pipe:
        return image_of(pipe, ip_adapter_image=[colours(1), colours(2)], ip_adapter_scale=[0.5, 0.25])


def image_of(pipe: Pipeline, **changes: Any) -> np.ndarray:
    (image,) = pipe(prompt="a red circle", control_image=drawing(1, 24, 16), **USUAL, **changes).images
    return np.asarray(image)


def test_images_as_text_and_as_files(site: Site, wanted: np.ndarray) -> None:
    texts = [text_of(colours(1)), text_of(colours(2))]
    fields = image_call(ip_adapter_image=texts, ip_adapter_scale=[0.5, 0.25])
    answer = site.http.post(ROUTE, json=fields)
    np.testing.assert_array_equal(pixels_of(answer.json()["data"][0]["b64_json"]), wanted)
    form = {name: value for name, value in fields.items() if not name.endswith("_image")}
    files = [("image", file_of(drawing(1, 24, 16)))]
    files += [("ip_adapter_image", file_of(colours(number))) for number in (1, 2)]
    answer = site.http.post(EDITS, data=form, files=files)
    np.testing.assert_array_equal(pixels_of(answer.json()["data"][0]["b64_json"]), wanted)


def test_what_does_not_fit_names_its_field(site: Site) -> None:
    one = image_call(ip_adapter_image=text_of(colours(1)))
    error = site.refused(400, "POST", ROUTE, json=one)
    assert error["param"] == "ip_adapter_image"
    assert "must be a list of 2 entries" in error["message"]
    error = site.refused(400, "POST", ROUTE, json=image_call(ip_adapter_image="style.png"))
    assert error["param"] == "ip_adapter_image"


def test_jobs_name_files(bundle: Path, tmp_path: Path, wanted: np.ndarray) -> None:
    (tmp_path / "out").mkdir()
    drawing(1, 24, 16).save(tmp_path / "control.png")
    for number in (1, 2):
        colours(number).save(tmp_path / f"{number}.png")
    call = {"prompt": "a red circle", "control_image": "control.png", **USUAL}
    job = Job("one", {**call, "ip_adapter_image": ["1.png", "2.png"], "ip_adapter_scale": [0.5, 0.25]})
    spec = BulkSpec(str(bundle), str(tmp_path), str(tmp_path / "out"), "auto", "cpu", 1, max_rows=4)
    with open_pipeline(bundle) as pipe, closing(JobResults(tmp_path / "out").whole()) as ledger:
        (record,) = do_jobs(pipe, [job], spec, ledger)
    with Image.open(tmp_path / "out" / record["files"][0]) as image:
        np.testing.assert_array_equal(np.asarray(image), wanted)
    before = with_basis([job], tmp_path, "bundle")[0].digest
    colours(3).save(tmp_path / "2.png")
    assert with_basis([job], tmp_path, "bundle")[0].digest != before


def test_run_reads_files(bundle: Path, tmp_path: Path, cli: Any, wanted: np.ndarray) -> None:
    drawing(1, 24, 16).save(tmp_path / "control.png")
    for number in (1, 2):
        colours(number).save(tmp_path / f"{number}.png")
    options = ["--ip-adapter-image", tmp_path / "1.png", "--ip-adapter-image", tmp_path / "2.png"]
    options += ["--ip-adapter-scale", 0.5, "--ip-adapter-scale", 0.25]
    usual = ["--steps", USUAL["num_inference_steps"], "--sampler", USUAL["sampler"], "--seed", USUAL["seed"]]
    usual += ["--threads", 1]
    given = ["--prompt", "a red circle", "--control-image", tmp_path / "control.png", *usual]
    cli("run", bundle, *given, *options, "--output", tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image:
        np.testing.assert_array_equal(np.asarray(image), wanted)
