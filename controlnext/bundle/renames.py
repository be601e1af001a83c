"""Renames that put something complete in the place of something else, at once, and for a machine that loses
power too."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

from controlnext.bundle.scratch import REPLACED

_HERE, _EXCHANGE = -100, 2
"""Linux's AT_FDCWD and RENAME_EXCHANGE."""
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
"""Errors of systems and file systems that do not know a call."""


def flush(path: Path) -> None:
    """Wait until the disk has a file, or a directory with all that is in it.

    A rename before that may outlast a loss of power when the content does not.
    """
    if path.is_symlink():
        return
    directory = path.is_dir()
    if directory:
        for child in path.iterdir():
            flush(child)
        if sys.platform == "win32":
            return
    # Windows flushes what is open for writing alone
    file = os.open(path, os.O_RDONLY if directory or sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(file)


def flush_names(directory: Path) -> None:
    """Wait until the disk has the names of the files in a directory, where it can be told to."""
    if sys.platform != "win32":
        with suppress(OSError):
            file = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def put_file(new: Path, target: Path) -> None:
    """Have the file ``new`` replace ``target``."""
    flush(new)
    new.replace(target)
    flush_names(target.parent)


def put_directory(new: Path, target: Path, *, replace: bool) -> None:
    """Rename the directory ``new``, which is in a scratch directory, to ``target``.

    With ``replace`` what is there is exchanged for it; there is no moment at which neither is there, but for
    file systems that cannot exchange: there the next process puts back what one that was killed had moved.
    Otherwise raises :class:`OSError` unless ``target`` is free or empty.
    """
    flush(new)
    try:
        new.rename(target)
    except OSError as error:
        if not replace or error.errno not in _TAKEN:
            raise
        if not _exchange(new, target):
            _move_and_rename(new, target)
    flush_names(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths; return False where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if not call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _move_and_rename(new: Path, target: Path) -> None:
    old = new.with_name(REPLACED)
    with suppress(FileNotFoundError):
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
