"""Writing a bundle as a Triton model: complete by itself, never half written, its settings kept."""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError, InputError, WorkError
from controlnext.runtime import Pipeline
from controlnext.runtime.triton import repository
from controlnext.runtime.triton.model_config import model_config
from controlnext.runtime.triton.repository import write_model
from controlnext.runtime.triton.settings import TritonSettings
from controlnext.runtime.triton.tensors import INPUTS, OUTPUTS
from support.fake_bundle import write_fake_bundle

SETTINGS = TritonSettings()


def _files(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)


def test_a_model_works_where_it_is_copied_to(toy: Path, tmp_path: Path) -> None:
    """Its graphs are links to the bundle's, which takes no room; it needs the bundle no more."""
    bundle = shutil.copytree(toy, tmp_path / "my-bundle")
    written = write_model(bundle, tmp_path / "repository", SETTINGS)
    assert written.directory == tmp_path / "repository" / "my-bundle"
    assert written.name == "my-bundle"
    graph = "unet/model.onnx"
    assert (written.directory / "1" / "bundle" / graph).samefile(bundle / graph)
    assert written.bytes == sum(map(len, _files(bundle).values())) > written.copied
    moved = shutil.copytree(written.directory, tmp_path / "elsewhere")
    assert _files(moved / "1" / "bundle") == _files(bundle)
    shutil.rmtree(bundle)
    with Pipeline.load(moved / "1" / "bundle", cache=False) as pipe:
        assert pipe.backend == "onnxruntime on cpu"
    compile((moved / "1" / "model.py").read_text(), "model.py", "exec")


def test_engines_come_along_as_copies(toy: Path, tmp_path: Path) -> None:
    """Linked ones would be checked anew at each start; what is being written there is left out."""
    bundle = shutil.copytree(toy, tmp_path / "bundle")
    for name in ("tensorrt-sm86/unet/model.engine", ".tensorrt.x/made"):
        (bundle / "engines" / name).parent.mkdir(parents=True)
        (bundle / "engines" / name).write_bytes(b"engine")
    written = write_model(bundle, tmp_path / "repository", SETTINGS)
    engines = written.directory / "1" / "bundle" / "engines"
    assert _files(engines) == {"tensorrt-sm86/unet/model.engine": b"engine"}
    assert (engines / "tensorrt-sm86/unet/model.engine").stat().st_nlink == 1


@pytest.mark.usefixtures("no_links")
def test_files_that_cannot_be_linked_are_copied(toy: Path, tmp_path: Path) -> None:
    written = write_model(toy, tmp_path, SETTINGS)
    assert written.copied == written.bytes
    assert _files(written.directory / "1" / "bundle") == _files(toy)


@pytest.mark.usefixtures("no_links")
def test_a_disk_without_room_is_told_before_anything_is_copied(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(WorkError, match=r"needs [\d,]+ bytes and the disk has 1,000; give an `output`"):
        write_model(toy, tmp_path / "repository", SETTINGS)
    assert not list((tmp_path / "repository").iterdir())


def test_a_model_is_replaced_only_if_told_to_and_others_stay(toy: Path, tmp_path: Path) -> None:
    write_model(toy, tmp_path, SETTINGS, name="other")
    written = write_model(toy, tmp_path, SETTINGS)
    before = _files(tmp_path)
    with pytest.raises(InputError, match="holds a Triton model already; give `force` to replace it"):
        write_model(toy, tmp_path, SETTINGS, decoupled=False)
    assert _files(tmp_path) == before
    write_model(toy, tmp_path, SETTINGS, decoupled=False, force=True)
    changed = {name for name, content in _files(tmp_path).items() if before[name] != content}
    assert changed == {f"{written.name}/config.pbtxt"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.pbtxt").touch()
    with pytest.raises(InputError, match="holds files that are not a Triton model"):
        write_model(toy, tmp_path, SETTINGS, name="mine", force=True)


@pytest.mark.parametrize("name", ["", "a b", "../toy", ".toy", "-toy", "tö"])
def test_a_name_that_does_not_fit_into_an_address_is_refused(toy: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="accepted are letters, digits") as caught:
        write_model(toy, tmp_path / "repository", SETTINGS, name=name)
    assert caught.value.argument == "name"
    assert not list(tmp_path.iterdir())


def test_bundles_that_cannot_be_served_are_refused(toy: Path, tmp_path: Path) -> None:
    """One without text encoders, one with a truncated or damaged file; a directory that is none."""
    mute = write_fake_bundle(tmp_path / "mute", text_encoders=False)
    cut = shutil.copytree(toy, tmp_path / "cut")
    (cut / "unet" / "model.onnx").write_bytes(b"x")
    flipped = shutil.copytree(toy, tmp_path / "flipped")
    content = bytearray((flipped / "text_encoder" / "model.onnx.data").read_bytes())
    content[7] ^= 1
    (flipped / "text_encoder" / "model.onnx.data").write_bytes(content)
    refused = {mute: "no text_encoder", cut: "truncated", flipped: "damaged", tmp_path: "is not a bundle"}
    for bundle, words in refused.items():
        with pytest.raises(InputError, match=words):
            write_model(bundle, tmp_path / "repository", SETTINGS)
    assert not (tmp_path / "repository").exists()


def test_a_location_is_no_model_repository(toy: Path) -> None:
    with pytest.raises(InputError, match="output s3://models/all is not on this machine; give a path"):
        write_model(toy, Path("s3://models/all"), SETTINGS)


def test_a_bundle_of_clips_is_refused_with_the_reason(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = msgspec.structs.replace(read_manifest(toy), family="svd")
    monkeypatch.setattr(repository, "read_manifest", lambda _: manifest)
    with pytest.raises(InputError, match="makes clips, which take longer than a request to Triton should"):
        write_model(toy, tmp_path, SETTINGS)


def test_the_configuration_declares_every_tensor_and_keeps_the_settings() -> None:
    settings = replace(SETTINGS, max_rows=3, threads=2, device="cuda:1", backend="tensorrt")
    text = model_config(settings, decoupled=True)
    for field in (*INPUTS, *OUTPUTS):
        assert f'name: "{field.name}" data_type: TYPE_{field.type} ' in text
    assert text.count("optional: true") == len(INPUTS) - 1
    assert "max_batch_size: 3\n" in text
    assert "decoupled: true" in text
    assert "kind: KIND_GPU gpus: [ 1 ]" in text
    pattern = r'parameters { key: "(\w+)" value { string_value: "([^"]*)" } }\n'
    assert TritonSettings.of(dict(re.findall(pattern, text))) == settings
    assert "decoupled: false" in model_config(SETTINGS, decoupled=False)
    assert "kind: KIND_CPU }" in model_config(replace(SETTINGS, device="cpu"), decoupled=True)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"max_rows": "many"}, "the parameter max_rows is 'many'; it must be an integer"),
        ({"max_rows": "0"}, "max_rows is 0; it must be an integer of at least 1"),
        ({"threads": "0"}, "threads is 0"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"backend": "magic"}, "unknown backend 'magic'; accepted: auto, "),
    ],
)
def test_settings_that_somebody_changed_for_the_worse_are_refused(
    parameters: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        TritonSettings.of({**parameters, "EXECUTION_ENV_PATH": "/env"})


def test_a_missing_bundle_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        write_model(tmp_path / "none", tmp_path, SETTINGS)
