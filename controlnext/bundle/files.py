"""Checksums, and files and directories that are written under a temporary name and renamed when complete."""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlnext.errors import InputError, WorkError

MANIFEST = "controlnext.json"


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_replaceable(target: Path, force: bool, marker: str = MANIFEST, kind: str = "bundle") -> None:
    """Raise :class:`InputError` unless ``target`` is free, empty, or of this ``kind`` and ``force`` is set.

    ``marker``: the file by which a directory of this kind is known.
    """
    if target.is_file():
        raise InputError(f"output {target} is a file; give the path of a directory", argument="output")
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / marker).exists():
        raise InputError(
            f"output {target} holds files that are not a {kind}; give a new or empty directory",
            argument="output",
        )
    if not force:
        raise InputError(
            f"output {target} holds a {kind} already; give `force` to replace it", argument="force"
        )


def check_writable(target: Path) -> None:
    """Raise :class:`InputError` unless ``target`` can be written. Create missing directories."""
    with _directory_beside(target):
        pass


@contextmanager
def new_folder(
    target: Path, force: bool = False, marker: str = MANIFEST, kind: str = "bundle"
) -> Iterator[Path]:
    """Yield a directory beside ``target`` to write into; it replaces ``target`` when the block succeeds.

    What may be there is that of :func:`check_replaceable`.

    On any error the directory is removed and ``target`` is unchanged. A full disk raises :class:`WorkError`.
    """
    check_replaceable(target, force, marker, kind)
    with _directory_beside(target) as aside:
        yield aside
        aside.chmod(0o755)
        # another process may have made one meanwhile
        check_replaceable(target, force, marker, kind)
        _swap(aside, target)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path to write a file to; the file replaces ``target`` when the block succeeds."""
    with _directory_beside(target) as aside:
        yield aside / target.name
        (aside / target.name).replace(target)


@contextmanager
def _directory_beside(target: Path) -> Iterator[Path]:
    """Yield a new directory on the same disk as ``target``, so that its content can be moved by a rename;
    remove it at the end.

    The name is chosen before the directory is created, so that an interrupt in between leaves nothing behind.
    """
    aside = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        _make(aside, target)
        yield aside
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _make(aside: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir(mode=0o700)
    except FileNotFoundError as error:
        raise InputError(
            f"cannot write to {target}: no directory can be made there; give `output` a writable path",
            argument="output",
        ) from error


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _explain(error: OSError, target: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkError(f"the disk that holds {target} is full; nothing was written there")
    if error.errno in (
        errno.EACCES,
        errno.EROFS,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
    ):
        return InputError(
            f"cannot write to {target}: {error.strerror}; give `output` a writable path",
            argument="output",
        )
    if error.errno is None:
        # NumPy's error when fewer bytes were written than asked
        return WorkError(f"writing {target} failed: {error}; is the disk full? Nothing was written there")
    return error
