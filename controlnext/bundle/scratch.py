"""Temporary directories that a later process removes if the one that made them was killed.

In each is a file that its process has locked while it lives. The system releases the lock of a process that
ended in any way, so that a directory whose file can be locked is abandoned.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed process left stays
    fcntl = None  # type: ignore[assignment]

REPLACED = ".replaced"
"""Name in such a directory of what was moved out of its place to be replaced: it is put back if its process
was killed before that was done."""
_LOCK = ".lock"
_NAME = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial", re.DOTALL)


@contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new directory ``.NAME.<random>.partial`` in ``parent`` and remove it at the end; remove those
    of that name first whose process was killed.

    The name is chosen before the directory is created, so that an interrupt in between leaves nothing behind.
    """
    remove_abandoned(parent, name)
    while True:
        path, lock = parent / f".{name}.{secrets.token_hex(4)}.partial", None
        try:
            path.mkdir(mode=0o700)
            lock = _hold(path)
            if lock is None:
                continue
            yield path
            return
        finally:
            _remove(path, lock)


@contextmanager
def temporary_directory(name: str) -> Iterator[Path]:
    """Yield a new directory where the system has its temporary files, as :func:`scratch_directory` does."""
    with scratch_directory(Path(tempfile.gettempdir()), f"controlnext-{name}") as path:
        yield path


def remove_abandoned(parent: Path, name: str | None = None) -> None:
    """Remove the directories of ``name``, or of any, that killed processes left in ``parent``.

    Those of living processes stay, also of other machines where the file system shares its locks; so do those
    that cannot be locked or removed.
    """
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(parent) as entries:
        found = [
            (match["name"], Path(entry.path))
            for entry in entries
            if (match := _NAME.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)
        ]
        for own, path in found:
            if name in (None, own):
                with suppress(OSError):
                    _remove_if_abandoned(path, parent / own)


def _hold(directory: Path) -> int | None:
    """Lock a new directory; return None if another process took it for abandoned before that."""
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        # a file system without locks: nobody can tell there that a directory is abandoned
        return lock
    if os.fstat(lock).st_nlink:
        return lock
    os.close(lock)
    return None


def _remove_if_abandoned(path: Path, place: Path) -> None:
    """Remove a directory, unless its process lives; ``place``: where what it replaced was."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        # killed before it had the lock, or about to have it: then that process makes another directory
        path.rmdir()
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (path / REPLACED).exists() and not os.path.lexists(place):
            (path / REPLACED).rename(place)
    except OSError:
        os.close(lock)
        return
    _remove(path, lock)


def _remove(path: Path, lock: int | None) -> None:
    """Remove a directory, the lock last: until then it can be told that it is abandoned."""
    with suppress(OSError):
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child.name != _LOCK:
                child.unlink()
    if lock is not None:
        os.close(lock)
    with suppress(OSError):
        if all(child.name == _LOCK for child in path.iterdir()):
            (path / _LOCK).unlink(missing_ok=True)
            path.rmdir()
