"""Bundles that lie elsewhere are copied once, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.remote import cache_directory, is_remote, local_copy
from controlnext.errors import BundleError, InputError, MissingDependencyError, WorkError
from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle

PLACE = "memory://models/toy"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("remote") / "toy")


@pytest.fixture(autouse=True)
def memory(toy: Path) -> Iterator[MemoryFileSystem]:
    """Return a filesystem in memory that holds the bundle."""
    system = fsspec.filesystem("memory")
    system.put(str(toy), "/models/toy", recursive=True)
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths that are opened, as they are."""
    opened: list[str] = []
    own: Callable[..., Any] = MemoryFileSystem._open

    def watched(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        opened.append(path)
        return own(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", watched)
    return opened


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_copy_is_the_bundle_and_is_made_once(toy: Path, read: list[str], tmp_path: Path) -> None:
    copy = local_copy(PLACE, tmp_path)
    assert files_of(copy) == files_of(toy)
    assert copy.name == "toy"
    read.clear()
    assert local_copy(PLACE, tmp_path) == copy
    assert read == [f"/models/toy/{MANIFEST}"]


def test_a_path_comes_back_as_it_is(tmp_path: Path) -> None:
    assert local_copy(tmp_path) == tmp_path
    assert local_copy("a/b") == Path("a/b")
    assert [is_remote(one) for one in ("s3://a/b", "hf://a/b", "/a", "c:/a", "a")] == [True, True] + [
        False
    ] * 3
    with pytest.raises(InputError, match="cannot hold s3://a/b; give it as a string"):
        is_remote(Path("s3://a/b"))


def test_a_pipeline_is_loaded_from_elsewhere(
    toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTROLNEXT_CACHE", str(tmp_path))
    with Pipeline.load(f"file://{toy}", device="cpu", threads=1) as pipe:
        assert tmp_path in pipe.bundle.path.parents


def test_the_cache_is_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CONTROLNEXT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "controlnext" / "bundles"
    monkeypatch.setenv("CONTROLNEXT_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


def test_processes_copy_once(read: list[str], tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        copies = set(pool.map(lambda _: local_copy(PLACE, tmp_path), range(6)))
    assert len(copies) == 1
    files = [path for path in read if not path.endswith(MANIFEST)]
    assert len(files) == len(set(files))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"unet/model.onnx has \d+ bytes, the manifest says"),
        (lambda content: content + b"x", r"unet/model.onnx has more than \d+ bytes"),
        (lambda content: content[:-1] + b"x", "unet/model.onnx is damaged: its sha256 is"),
    ],
    ids=["short", "long", "changed"],
)
def test_a_damaged_file_leaves_no_copy(
    memory: MemoryFileSystem, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = "/models/toy/unet/model.onnx"
    whole = memory.cat_file(path)
    memory.pipe_file(path, damage(whole))
    with pytest.raises(BundleError, match=message) as caught:
        local_copy(PLACE, tmp_path)
    assert caught.value.argument == "bundle"
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one.name != ".lock"]
    memory.pipe_file(path, whole)
    assert (local_copy(PLACE, tmp_path) / MANIFEST).is_file()


def test_a_copy_that_breaks_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = MemoryFileSystem._open

    def broken(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith("unet/model.onnx"):
            raise ConnectionResetError("the line is dead")
        return own(self, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "_open", broken)
        with pytest.raises(
            WorkError, match=r"unet/model.onnx cannot be read \(the line is dead\); try again"
        ):
            local_copy(PLACE, tmp_path)
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one.name != ".lock"]
    # what a killed process left
    left = next(tmp_path.iterdir()) / ".copying.0123abcd.partial"
    (left / "made").mkdir(parents=True)
    (left / ".lock").touch()
    copy = local_copy(PLACE, tmp_path)
    assert {one.name for one in copy.parent.iterdir()} <= {copy.name, ".lock"}


def test_a_copy_that_was_damaged_is_made_again(toy: Path, tmp_path: Path) -> None:
    copy = local_copy(PLACE, tmp_path)
    (copy / "unet" / "model.onnx").write_bytes(b"")
    assert files_of(local_copy(PLACE, tmp_path)) == files_of(toy)


def test_another_manifest_is_another_copy(memory: MemoryFileSystem, tmp_path: Path) -> None:
    first = local_copy(PLACE, tmp_path)
    manifest = json.loads(memory.cat_file(f"/models/toy/{MANIFEST}"))
    memory.pipe_file(f"/models/toy/{MANIFEST}", json.dumps(manifest, indent=3).encode())
    second = local_copy(PLACE, tmp_path)
    assert first != second
    assert (first / MANIFEST).is_file()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", MANIFEST, "a\nb", "."])
def test_no_file_is_written_outside_the_copy(memory: MemoryFileSystem, tmp_path: Path, name: str) -> None:
    manifest = json.loads(memory.cat_file(f"/models/toy/{MANIFEST}"))
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    memory.pipe_file(f"/models/toy/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(BundleError, match="which is no name of a file in a bundle"):
        local_copy(PLACE, tmp_path)


@pytest.mark.parametrize(
    ("location", "kind", "message"),
    [
        ("memory://nowhere/toy", BundleError, "there is nothing at memory://nowhere/toy"),
        ("memory://models", BundleError, f"memory://models is not a bundle: it has no {MANIFEST}"),
        ("memory://", InputError, "bundle memory:// names no directory"),
        ("memory://models/..", InputError, "names no directory"),
        ("nothing://a/b", InputError, "unknown scheme 'nothing'; accepted: a path, or one of"),
        (
            "s3://bucket/toy",
            MissingDependencyError,
            "needs s3fs, which is not installed; run pip install s3fs",
        ),
    ],
)
def test_locations_that_are_refused(
    tmp_path: Path, location: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        local_copy(location, tmp_path)


def test_a_missing_permission_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise PermissionError("denied")

    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.raises(InputError, match=r"no permission to read .*denied.*; give the credentials"):
        local_copy(PLACE, tmp_path)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """It is not the bundle that is missing."""
    pytest.importorskip("aiohttp")
    message = r"^http://127.0.0.1:1/toy/controlnext.json cannot be reached \(.*\); check the address and"
    with pytest.raises(WorkError, match=message):
        local_copy("http://127.0.0.1:1/toy", tmp_path)


def test_without_the_network_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise errors.OfflineModeIsEnabled("cannot reach the hub")

    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.raises(InputError, match="as HF_HUB_OFFLINE is set; unset it, or give the path of a copy"):
        local_copy(PLACE, tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be copied to .*; set CONTROLNEXT_CACHE"):
        local_copy(PLACE, tmp_path / "file")
