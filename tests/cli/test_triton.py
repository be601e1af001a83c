"""``controlnext triton``: what it writes and prints; bad input is one line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from controlnext.cli.triton import triton
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("triton") / "fake", "sd15")


def test_a_model_is_written_with_its_options(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    done = cli("triton", bundle, "--output", repository)
    assert done.status == 0, done.err
    assert done.out.split() == (
        f"{repository}/fake: serve it with tritonserver --model-repository {repository}".split()
    )
    options = ["--name", "one", "--no-decoupled", "--max-rows", 4, "--queue", 5, "--threads", 1, "--json"]
    done = cli(
        "triton", bundle, "--output", repository, "--backend", "onnxruntime", "--device", "cpu", *options
    )
    found = json.loads(done.out)
    assert found["copied_bytes"] < found.pop("bytes")
    del found["copied_bytes"]
    assert found == {"model_repository": str(repository), "model": "one", "decoupled": False}
    config = (repository / "one" / "config.pbtxt").read_text()
    values = {"max_rows": 4, "max_waiting": 5, "threads": 1, "backend": "onnxruntime", "device": "cpu"}
    for name, value in values.items():
        assert f'key: "{name}" value {{ string_value: "{value}" }}' in config
    assert "decoupled: false" in config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-rows", "0"], ["--max-rows is 0", "at least 1"]),
        (["--queue", "-1"], ["--queue is -1", "at least 0"]),
        (["--name", "a/b"], ["--name is 'a/b'", "letters"]),
        (["--backend", "magic"], ["unknown backend 'magic'", "onnxruntime"]),
        (["--device", "gpu"], ["unknown device 'gpu'", "cuda:0"]),
        (["--output", "{bundle}/controlnext.json/models"], ["cannot write to", "--output"]),
    ],
)
def test_what_is_refused(
    cli: Cli, bundle: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    given = [option.format(bundle=bundle) for option in options]
    assert_refused(cli("triton", bundle, "--output", tmp_path / "models", *given), *words)


def test_a_second_model_of_a_name_needs_force(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    assert cli("triton", bundle, "--output", tmp_path).status == 0
    assert_refused(cli("triton", bundle, "--output", tmp_path), "holds a Triton model already", "--force")
    assert cli("triton", bundle, "--output", tmp_path, "--force").status == 0


def test_the_document_has_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "triton.md").read_text()
    names = set(inspect.signature(triton).parameters) - {"bundle", "as_json"}
    options = {f"--{name.replace('_', '-')}" for name in names} | {"--no-decoupled", "--json"}
    assert not {option for option in options if f"`{option}" not in text}
