"""Files that are kept: what is read again, and what is noticed without."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from controlnext.engines import artifact_cache


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file that counts as large."""
    monkeypatch.setattr(artifact_cache, "_LARGE", 1 << 20)
    folder = tmp_path / "kept"
    with artifact_cache.store(folder) as made:
        (made / "large").write_bytes(os.urandom(1 << 22))
        (made / "small").write_bytes(b"small")
    return folder


def test_a_large_file_that_nobody_wrote_to_is_not_read(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    checksum = artifact_cache.sha256
    monkeypatch.setattr(artifact_cache, "sha256", lambda path: read.append(path.name) or checksum(path))
    assert artifact_cache.is_intact(kept)
    assert read == ["small"]


@pytest.mark.parametrize("name", ["large", "small"])
def test_a_flipped_bit_is_noticed_whatever_its_time(kept: Path, name: str) -> None:
    path = kept / name
    status = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert artifact_cache.find_damage(kept) == f"{name}: the checksum has changed"


def test_a_copy_goes_by_its_checksums(kept: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(kept, tmp_path / "copy")
    assert artifact_cache.is_intact(copy)
    (copy / "large").write_bytes(os.urandom(1 << 22))
    assert not artifact_cache.is_intact(copy)


def _write(folder: Path, text: str) -> None:
    with artifact_cache.store(folder) as made:
        for name in ("a", "b"):
            (made / name).write_text(text)


def test_threads_that_store_at_once_leave_one_whole_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another is put in place between the two renames of one."""
    folder, moved = tmp_path / "made", Path.rename
    _write(folder, "old")

    def interrupted(path: Path, target: Path) -> Path:
        done = moved(path, target)
        if path == folder:
            monkeypatch.setattr(Path, "rename", moved)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(partial(_write, folder), ("1", "2", "3", "4")))
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    _write(folder, "0")
    assert artifact_cache.is_intact(folder)
    assert (folder / "a").read_text() == (folder / "b").read_text() != "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_not_listed_or_not_there_is_damage(kept: Path) -> None:
    """A file that the list leaves out would be read unchecked."""
    (kept / "further.bin").touch()
    assert "further.bin: not both listed and there" in artifact_cache.find_damage(kept)
    (kept / "further.bin").unlink()
    assert not artifact_cache.find_damage(kept)
    (kept / artifact_cache.CHECKSUMS).write_text('{"../outside": {"sha256": "", "stamp": null}}')
    assert "../outside" in artifact_cache.find_damage(kept)


def test_neither_a_link_out_nor_a_pipe_is_read(kept: Path) -> None:
    file = next(path for path in kept.iterdir() if path.name != artifact_cache.CHECKSUMS)
    file.rename(kept.parent / "moved")
    file.symlink_to(kept.parent / "moved")
    assert "is a link to" in artifact_cache.find_damage(kept)
    file.unlink()
    os.mkfifo(file)
    assert file.name in artifact_cache.find_damage(kept)


def test_a_file_of_another_size_is_not_read(kept: Path) -> None:
    """A hole of a terabyte takes no room on the disk, and hours to read."""
    file = next(path for path in kept.iterdir() if path.name != artifact_cache.CHECKSUMS)
    os.truncate(file, 10**12)
    assert file.name in artifact_cache.find_damage(kept)
