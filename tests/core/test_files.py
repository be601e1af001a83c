"""Directories and files are complete or not there."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from controlnext.bundle.files import (
    MANIFEST,
    check_new_file,
    check_replaceable,
    check_writable,
    new_file,
    new_folder,
    sha256,
)
from controlnext.errors import InputError, WorkError

FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


def _bundle(folder: Path, content: str = "old") -> Path:
    folder.mkdir()
    (folder / MANIFEST).write_text(content)
    return folder


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _fail_half_way(target: Path, error: BaseException) -> None:
    with new_folder(target, force=True) as aside:
        (aside / "half").write_text("half")
        raise error


def _fail_half_way_in_a_file(target: Path, error: BaseException) -> None:
    with new_file(target) as aside:
        aside.write_text("half")
        raise error


def test_sha256_is_the_digest_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_free_or_empty_folder_may_be_written(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new", force=False)
    check_replaceable(tmp_path, force=False)


def test_a_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="holds a bundle already; give `force`"):
        check_replaceable(bundle, force=False)
    check_replaceable(bundle, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are not a bundle"):
        check_replaceable(tmp_path, force)
    with pytest.raises(InputError, match="is a file"):
        check_replaceable(tmp_path / "thesis.txt", force)


def test_the_folder_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with new_folder(target) as aside:
        (aside / MANIFEST).write_text("new")
        assert not target.exists()
    assert (target / MANIFEST).read_text() == "new"
    assert _listing(target.parent) == ["bundle"]


def test_force_replaces_the_old_folder_whole(tmp_path: Path) -> None:
    target = _bundle(tmp_path / "bundle")
    (target / "left-over").write_text("")
    with new_folder(target, force=True) as aside:
        (aside / MANIFEST).write_text("new")
    assert _listing(target) == [MANIFEST]
    assert (target / MANIFEST).read_text() == "new"
    assert _listing(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_folder_untouched(tmp_path: Path, error: BaseException) -> None:
    target = _bundle(tmp_path / "bundle")
    with pytest.raises(type(error)):
        _fail_half_way(target, error)
    assert (target / MANIFEST).read_text() == "old"
    assert _listing(tmp_path) == ["bundle"]


def test_a_full_disk_is_one_error_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="is full; nothing was written"):
        _fail_half_way(tmp_path / "bundle", FULL_DISK)
    assert _listing(tmp_path) == []


def test_a_short_write_is_the_same_error(tmp_path: Path) -> None:
    """So NumPy tells of a full disk: without an error number."""
    with pytest.raises(WorkError, match="is the disk full"):
        _fail_half_way(tmp_path / "bundle", OSError("16384 requested and 3712 written"))
    assert _listing(tmp_path) == []


def test_a_place_that_cannot_be_written_is_the_users_to_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"), new_folder(tmp_path / "file" / "bundle"):
        pass


def test_a_place_where_no_directory_can_be_made_is_the_users_to_fix() -> None:
    target = Path("/proc/bundle")
    with pytest.raises(InputError, match="cannot write to /proc/bundle") as refused, new_folder(target):
        pass
    assert refused.value.argument == "output"


@pytest.mark.parametrize("argument", ["output", "config"])
def test_a_file_that_cannot_be_written_is_refused_by_its_argument(tmp_path: Path, argument: str) -> None:
    """A directory in its place, none that holds it, or a location that a path cannot hold."""
    cases = {
        tmp_path: f"^{argument} {tmp_path} is a directory; give the path of a file",
        Path(): rf"^{argument} \. is a directory",
        Path("/proc/c.yaml"): f"cannot write to /proc/c.yaml: .*; give `{argument}` a writable path",
        Path("s3://b/c.yaml"): f"^{argument} s3://b/c.yaml is not on this machine; give a path",
    }
    for target, message in cases.items():
        with pytest.raises(InputError, match=message) as refused, new_file(target, argument):
            pytest.fail("it was taken")
        assert refused.value.argument == argument
        with pytest.raises(InputError, match=message):
            check_new_file(target, argument)


def test_a_location_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless there is one of that name."""
    monkeypatch.chdir(tmp_path)
    for check in (check_writable, lambda target: check_replaceable(target, force=False)):
        with pytest.raises(InputError, match="output gs://b/bundle is not on this machine"):
            check(Path("gs://b/bundle"))
    assert not _listing(tmp_path)
    (tmp_path / "gs:").mkdir()
    check_replaceable(Path("gs://b/bundle"), force=False)


def test_a_bundle_that_another_process_finished_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(InputError, match="already"), new_folder(target), new_folder(target) as first:
        (first / MANIFEST).write_text("first")
    assert (target / MANIFEST).read_text() == "first"
    assert _listing(tmp_path) == ["bundle"]


def test_a_new_file_takes_the_old_ones_place_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "image.png"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="bug"):
        _fail_half_way_in_a_file(target, RuntimeError("bug"))
    assert target.read_text() == "old"
    with new_file(target) as aside:
        assert aside.suffix == ".png"
        aside.write_text("new")
    assert target.read_text() == "new"
    assert _listing(tmp_path) == ["image.png"]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="is full; nothing was written"):
        _fail_half_way_in_a_file(tmp_path / "image.png", FULL_DISK)
    assert _listing(tmp_path) == []
