"""Files that are kept: what is read again, and what is noticed without."""

from __future__ import annotations

import os
import shutil
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
    assert artifact_cache.find_damage(kept) == f"{name}: not the checksum of when it was made"


def test_a_copy_goes_by_its_checksums(kept: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(kept, tmp_path / "copy")
    assert artifact_cache.is_intact(copy)
    (copy / "large").write_bytes(os.urandom(1 << 22))
    assert not artifact_cache.is_intact(copy)
