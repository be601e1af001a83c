"""Temporary directories: those of killed processes are removed, those of living ones never."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controlnext.bundle import renames, scratch
from controlnext.bundle.files import MANIFEST, new_file, new_folder
from controlnext.bundle.scratch import REPLACED, remove_abandoned, scratch_directory
from controlnext.errors import InputError

_WRITER = """
import sys, time
from pathlib import Path
from controlnext.bundle.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1]), sys.argv[2]) as made:
    (made / "deep").mkdir()
    (made / "deep" / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writer(parent: Path, name: str, how: signal.Signals = signal.SIGKILL) -> Iterator[None]:
    """A process that has such a directory within the block, and is killed at its end."""
    command = [sys.executable, "-c", _WRITER, str(parent), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield
        process.send_signal(how)


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_left_goes_with_the_next_of_that_name(
    tmp_path: Path, how: signal.Signals
) -> None:
    """Not before it was killed, and nothing of another name."""
    with writer(tmp_path, "other"):
        with writer(tmp_path, "bundle", how):
            with scratch_directory(tmp_path, "bundle"):
                assert len(listing(tmp_path)) == 3
            assert len(listing(tmp_path)) == 2
        assert len(listing(tmp_path)) == 2
        with new_file(tmp_path / "bundle") as aside:
            aside.write_text("new")
        left, bundle = listing(tmp_path)
        assert left.startswith(".other.")
        assert bundle == "bundle"
    remove_abandoned(tmp_path)
    assert listing(tmp_path) == ["bundle"]


def test_names_that_are_not_ours_stay(tmp_path: Path) -> None:
    """Of other programs, of earlier releases, and links."""
    (tmp_path / "elsewhere" / ".lock").mkdir(parents=True)
    for name in (".bundle.partial", ".bundle.0123abcd.old", "bundle.0123abcd.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".bundle.00000000.partial").mkdir()
    (tmp_path / ".bundle.00000000.partial" / "without-a-lock").touch()
    (tmp_path / ".bundle.11111111.partial").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".bundle.22222222.partial").touch()
    before = listing(tmp_path)
    # killed before it had a lock
    (tmp_path / ".bundle.33333333.partial").mkdir()
    remove_abandoned(tmp_path, "bundle")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("moment", ["mkdir", "open"])
def test_a_process_that_was_taken_for_dead_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between the making of its directory or its lock and the locking."""
    own, removed = getattr(os, moment), []

    def overtaken(path: Path, *arguments: int, **options: int) -> int | None:
        result: int | None = own(path, *arguments, **options)
        if not removed and ".partial" in str(path):
            removed.append(path)
            remove_abandoned(tmp_path)
            assert not listing(tmp_path)
        return result

    monkeypatch.setattr(os, moment, overtaken)
    with scratch_directory(tmp_path, "bundle") as made:
        assert removed
        assert removed[0] not in (made, made / ".lock")
        remove_abandoned(tmp_path)
        assert made.is_dir()
    assert not listing(tmp_path)


def test_without_locks_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that has none: what a killed process left stays, work goes on."""

    def refuse(*_arguments: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    with scratch_directory(tmp_path, "bundle") as made, scratch_directory(tmp_path, "bundle"):
        assert made.is_dir()
    assert not listing(tmp_path)


def test_what_was_moved_away_is_put_back(tmp_path: Path) -> None:
    """A process was killed where directories cannot be exchanged, between the two renames."""
    left = tmp_path / ".bundle.0123abcd.partial"
    (left / REPLACED).mkdir(parents=True)
    (left / REPLACED / MANIFEST).write_text("old")
    (left / ".lock").touch()
    with pytest.raises(InputError, match="holds a bundle already"), new_folder(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "old"
    assert listing(tmp_path) == ["bundle"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_directory_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    """Where the system can exchange; elsewhere for a moment."""
    target = tmp_path / "bundle"
    target.mkdir()
    (target / MANIFEST).write_text("old")
    if not exchanges:
        monkeypatch.setattr(renames, "_exchange", lambda *_: False)
    with new_folder(target, force=True) as aside:
        (aside / MANIFEST).write_text("new")
    assert (target / MANIFEST).read_text() == "new"
    assert listing(tmp_path) == ["bundle"]


def test_where_nothing_can_be_exchanged_a_failure_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, renamed = tmp_path / "bundle", Path.rename
    target.mkdir()
    (target / MANIFEST).write_text("old")

    def fail(path: Path, to: Path) -> Path:
        if path.name == "made":
            raise OSError(errno.ENOTEMPTY if target.exists() else errno.EIO, "no")
        return renamed(path, to)

    monkeypatch.setattr(renames, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), new_folder(target, force=True) as aside:
        (aside / MANIFEST).write_text("new")
    assert (target / MANIFEST).read_text() == "old"
    assert listing(tmp_path) == ["bundle"]


def test_the_disk_has_all_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file and directory, the names that it has then, and nothing of it later."""
    events: list[str] = []
    flushed, renamed, replaced = os.fsync, Path.rename, Path.replace

    def fsync(file: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))  # noqa: PTH119, PTH115
        flushed(file)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", lambda *two: events.append("rename") or renamed(*two))
    monkeypatch.setattr(Path, "replace", lambda *two: events.append("rename") or replaced(*two))
    with new_folder(tmp_path / "bundle") as aside:
        (aside / "unet").mkdir()
        (aside / "unet" / "model.onnx").write_text("graph")
    assert events == ["model.onnx", "unet", "made", "rename", tmp_path.name]
    events.clear()
    with new_file(tmp_path / "image.png") as aside:
        aside.write_text("image")
    assert events == ["image.png", "rename", tmp_path.name]


def test_of_two_that_end_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the other one is put there after the last look."""
    target, put = tmp_path / "bundle", renames.put_directory

    def overtaken(new: Path, to: Path, *, replace: bool) -> None:
        to.mkdir()
        (to / MANIFEST).write_text("the other's")
        put(new, to, replace=replace)

    monkeypatch.setattr("controlnext.bundle.files.put_directory", overtaken)
    with pytest.raises(InputError, match="holds a bundle already"), new_folder(target) as aside:
        (aside / MANIFEST).write_text("mine")
    assert (target / MANIFEST).read_text() == "the other's"
    assert listing(tmp_path) == ["bundle"]


def test_no_other_temporary_directories_are_made() -> None:
    """Those of the standard library stay when their process is killed."""
    root = Path(__file__).parents[2]
    files = [
        path
        for name in ("controlnext", "export", "engines", "runtime")
        for path in (root / name).rglob("*.py")
    ]
    found = [
        path.name
        for path in files
        if "TemporaryDirectory(" in (text := path.read_text()) or "mkdtemp(" in text
    ]
    assert not found
