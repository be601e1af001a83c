"""Images of a server and of jobs carry what they were made with, and make the same image again."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.results import JobResults
from controlnext.runtime.bulk.work import BulkSpec, do_jobs
from controlnext.runtime.media.recipe import Recipe, portable_name, read_recipe, text_chunks
from controlnext.runtime.recipes import make_recipe
from controlnext.runtime.request import Request
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle
from support.fake_loras import write_fake_lora
from support.recipe import drawing
from support.serving import USUAL, Site, events_of, file_of, image_call, open_pipeline, serve

ROUTE = "/v1/images/generations"
CONTROL = drawing(1, 24, 16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("made") / "toy", lora_rank=8)


@pytest.fixture(scope="module")
def site(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    loras = tmp_path_factory.mktemp("loras")
    write_fake_lora(loras / "ink.safetensors", 1)
    with serve([bundle], ServerSettings(max_size=64, max_pixels=4096, loras=str(loras))) as made:
        yield made


def _read(content: bytes, tmp_path: Path) -> Recipe:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    return read_recipe(path)


def _content(answer: dict[str, Any], number: int = 0) -> bytes:
    return base64.b64decode(answer["data"][number]["b64_json"])


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def test_an_answer_makes_its_image_again(site: Site, bundle: Path, tmp_path: Path) -> None:
    call = image_call(seed=None, n=2, negative_prompt="green", lora={"ink": 0.5}, size="32x16")
    answer = site.http.post(ROUTE, json=call).json()
    recipe = _read(_content(answer, 1), tmp_path)
    assert recipe.arguments["seed"] == answer["seed"]
    assert (recipe.number, recipe.count) == (2, 2)
    assert recipe.files["control_image"][0].sha256 == hashlib.sha256(file_of(CONTROL)).hexdigest()
    assert [file.name for file in recipe.files["lora"]] == ["ink"]
    with open_pipeline(bundle) as pipe:
        pipe.add_lora("ink", write_fake_lora(tmp_path / "ink.safetensors", 1))
        made = pipe(control_image=CONTROL, **recipe.arguments).images
    for number, image in enumerate(made):
        np.testing.assert_array_equal(_pixels(_content(answer, number)), np.asarray(image))


def test_unfinished_images_have_none(site: Site, tmp_path: Path) -> None:
    with site.http.stream("POST", ROUTE, json=image_call(stream=True, partial_images=1)) as response:
        first, last = (base64.b64decode(event["b64_json"]) for event in events_of(response))
    assert b"controlnext" not in first
    assert _read(last, tmp_path).arguments["prompt"] == "a red circle"


@pytest.mark.parametrize("fields", [{"metadata": False}, {"output_format": "webp"}])
def test_a_request_leaves_it_out(site: Site, fields: dict[str, Any]) -> None:
    content = _content(site.http.post(ROUTE, json=image_call(**fields)).json())
    with Image.open(io.BytesIO(content)) as image:
        assert not {"controlnext", "parameters"} & image.info.keys()


def test_a_server_leaves_it_out(bundle: Path) -> None:
    with serve([bundle], ServerSettings(metadata=False)) as bare:
        for given in (None, True):
            content = _content(bare.http.post(ROUTE, json=image_call(metadata=given)).json())
            assert b"red circle" not in content


def _done(bundle: Path, spec: BulkSpec, arguments: dict[str, Any]) -> list[Path]:
    (Path(spec.output)).mkdir()
    with (
        open_pipeline(bundle) as pipe,
        closing(JobResults(Path(spec.output)).whole()) as ledger,
    ):
        (record,) = list(do_jobs(pipe, [Job("one", arguments)], spec, ledger))
    return [Path(spec.output) / name for name in record["files"]]


def test_the_image_of_a_job(bundle: Path, tmp_path: Path) -> None:
    """Its files are named as the job names them; a directory above is left out."""
    CONTROL.save(tmp_path / "control.png")
    write_fake_lora(tmp_path / "ink.safetensors", 1)
    spec = BulkSpec(str(bundle), str(tmp_path), str(tmp_path / "out"), "auto", "cpu", 1, max_rows=3)
    arguments = {"prompt": ["a", "b"], **USUAL, "control_image": "control.png"}
    arguments |= {"lora": {str(tmp_path / "ink.safetensors"): 0.5}, "num_images_per_prompt": 2}
    paths = _done(bundle, spec, arguments)
    recipe = read_recipe(paths[2])
    assert [file.name for file in recipe.files["control_image"]] == ["control.png"]
    assert recipe.arguments["lora"] == {"ink.safetensors": 0.5}
    assert recipe.parameters((8, 8)).startswith("b\nSteps: 8, Sampler: ddim, ")
    assert str(tmp_path).encode() not in paths[2].read_bytes()
    bare = replace(spec, output=str(tmp_path / "bare"), metadata=False)
    for with_it, without in zip(paths, _done(bundle, bare, arguments), strict=True):
        assert b"controlnext" not in without.read_bytes()
        np.testing.assert_array_equal(_pixels(with_it.read_bytes()), _pixels(without.read_bytes()))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a.png", "a.png"),
        ("b/a.png", "b/a.png"),
        ("/home/me/a.png", "a.png"),
        ("../me/a.png", "a.png"),
    ],
)
def test_names_tell_no_directories_of_this_machine(given: str, name: str) -> None:
    assert portable_name(Path(given)) == name


def test_arguments_that_are_too_long_are_left_out(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_pipeline(bundle) as pipe:
        recipe = make_recipe(pipe, Request("x" * 300_000, control_scale=np.float32(0.5)), {}, (8, 8))
    assert recipe.arguments["control_scale"] == 0.5
    assert text_chunks(recipe, (8, 8)) is None
    assert "more than 262144 letters" in caplog.text
