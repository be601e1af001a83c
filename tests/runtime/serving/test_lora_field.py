"""LoRAs of a directory, which requests choose by name: images are those of the pipeline; no path is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.runtime import Pipeline
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle
from support.fake_loras import write_fake_lora
from support.recipe import drawing
from support.serving import USUAL, Site, file_of, image_call, open_pipeline, pixels_of, serve

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
INK = {"ink": 0.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of bundles with room and without, and of LoRAs."""
    folder = tmp_path_factory.mktemp("styles")
    write_fake_bundle(folder / "roomy", lora_rank=4)
    write_fake_bundle(folder / "plain")
    (folder / "loras").mkdir()
    write_fake_lora(folder / "loras" / "ink.safetensors", 1)
    write_fake_lora(folder / "loras" / "large.safetensors", 2, 4)
    write_fake_lora(folder / "elsewhere.safetensors", 3)
    (folder / "loras" / "torn.safetensors").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    settings = ServerSettings(loras=str(folder / "loras"))
    with serve([folder / "roomy", folder / "plain"], settings) as site:
        yield site


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Pipeline]:
    with open_pipeline(folder / "roomy") as pipe:
        pipe.add_lora("ink", folder / "loras" / "ink.safetensors")
        yield pipe


def image_of(pipe: Pipeline, **changes: Any) -> np.ndarray:
    (image,) = pipe(prompt="a red circle", control_image=drawing(1, 24, 16), **USUAL, **changes).images
    return np.asarray(image)


def test_an_image_with_a_lora(site: Site, alone: Pipeline) -> None:
    for lora in (INK, None, INK):
        answer = site.http.post(ROUTE, json=image_call(model="roomy", lora=lora))
        assert answer.status_code == 200, answer.text
        made = pixels_of(answer.json()["data"][0]["b64_json"])
        np.testing.assert_array_equal(made, image_of(alone, lora=lora))
    assert not np.array_equal(image_of(alone, lora=INK), image_of(alone))


def test_a_form_has_it_as_json(site: Site, alone: Pipeline) -> None:
    fields = {"model": "roomy", "prompt": "a red circle", "lora": json.dumps(INK), **USUAL}
    files = {"image": ("a.png", file_of(drawing(1, 24, 16)), "image/png")}
    answer = site.http.post(EDITS, data={name: str(value) for name, value in fields.items()}, files=files)
    assert answer.status_code == 200, answer.text
    made = pixels_of(answer.json()["data"][0]["b64_json"])
    np.testing.assert_array_equal(made, image_of(alone, lora=INK))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"none": 1.0}, "there is no LoRA named none; accepted: ink"),
        ({"../elsewhere": 1.0}, "there is no LoRA named ../elsewhere"),
        ({"{folder}/elsewhere.safetensors": 1.0}, "there is no LoRA named"),
        ({"ink": 1.0, "large": 1.0}, "has a rank of 6 in all"),
        ({"torn": 1.0}, "is not a readable .safetensors file"),
        ({"ink": "much"}, ""),
        ({"ink": 1000}, ""),
        (["ink"], ""),
        ("ink", "give a JSON object"),
    ],
)
def test_what_is_refused_names_the_field(site: Site, folder: Path, lora: Any, message: str) -> None:
    if isinstance(lora, dict):
        lora = {name.format(folder=folder): scale for name, scale in lora.items()}
    error = site.refused(400, "POST", ROUTE, json=image_call(model="roomy", lora=lora))
    assert message in error["message"]
    assert f"{folder}/torn" not in error["message"]
    assert error["param"].startswith("lora")


def test_a_bundle_without_room_tells_how_to_get_it(site: Site) -> None:
    error = site.refused(400, "POST", ROUTE, json=image_call(model="plain", lora=INK))
    assert "no room for LoRAs" in error["message"]
    assert error["param"] == "lora"


@pytest.mark.parametrize("place", ["none", "roomy"])
def test_a_directory_without_loras_is_refused_at_the_start(folder: Path, place: str) -> None:
    with pytest.raises(InputError, match="give `loras` a directory of LoRAs") as error:
        ServerSettings(loras=str(folder / place))
    assert error.value.argument == "loras"
