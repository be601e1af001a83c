"""Checksums, and files and directories that are written under a temporary name and renamed when complete."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from controlnext.bundle.renames import put_directory, put_file
from controlnext.bundle.scratch import remove_abandoned, scratch_directory
from controlnext.errors import InputError, WorkError

MANIFEST = "controlnext.json"
_MADE = "made"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EBUSY,
    errno.EINVAL,
)
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/([^/].*)")
"""A location ``scheme://...`` as :class:`~pathlib.Path` writes it."""


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lost_location(path: Path) -> str | None:
    """Return the location ``scheme://...`` that a path was made of, unless there is such a path."""
    found = _COLLAPSED.fullmatch(str(path))
    if not found or Path(path.parts[0]).exists():
        return None
    return f"{found[1]}://{found[2]}"


def check_here(target: Path, argument: str) -> None:
    """Raise :class:`InputError` for a path that was made of a location ``scheme://...``."""
    if location := lost_location(target):
        raise InputError(
            f"{argument} {location} is not on this machine; give a path, and copy from there",
            argument=argument,
        )


def check_replaceable(target: Path, force: bool, marker: str = MANIFEST, kind: str = "bundle") -> None:
    """Raise :class:`InputError` unless ``target`` is free, empty, or of this ``kind`` and ``force`` is set.

    ``marker``: the file by which a directory of this kind is known. What killed processes left is removed.
    """
    check_here(target, "output")
    remove_abandoned(target.parent, target.name)
    check_place(target, force, marker, kind)


def check_place(target: Path, force: bool, marker: str = MANIFEST, kind: str = "bundle") -> None:
    """Raise as :func:`check_replaceable`, and change nothing."""
    check_here(target, "output")
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
    with _directory_beside(target, "output"):
        pass


def check_new_file(target: Path, argument: str = "output") -> None:
    """Raise :class:`InputError` unless :func:`new_file` can write ``target``. Create missing directories."""
    _check_no_directory(target, argument)
    with _directory_beside(target, argument):
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
    with _directory_beside(target, "output") as aside:
        made = aside / _MADE
        made.mkdir()
        made.chmod(0o755)
        yield made
        # another process may have made one meanwhile
        check_replaceable(target, force, marker, kind)
        try:
            put_directory(made, target, replace=force or target.is_symlink())
        except OSError:
            # at this very moment
            check_replaceable(target, force, marker, kind)
            raise


@contextmanager
def new_file(target: Path, argument: str = "output") -> Iterator[Path]:
    """Yield a path to write a file to; the file replaces ``target`` when the block succeeds.

    ``argument``: that which names ``target``, for errors. Raises :class:`InputError` where no file can be
    written, :class:`WorkError` where the disk is full.
    """
    _check_no_directory(target, argument)
    with _directory_beside(target, argument) as aside:
        yield aside / target.name
        put_file(aside / target.name, target)


@contextmanager
def writing_to(target: Path, argument: str = "output") -> Iterator[None]:
    """Turn the errors of writing to ``target`` within the block into one line, as :func:`new_file` does."""
    try:
        yield
    except OSError as error:
        raise _explain(error, target, argument) from error


@contextmanager
def _directory_beside(target: Path, argument: str) -> Iterator[Path]:
    """Yield a new directory on the same disk as ``target``, so that its content can be moved by a rename;
    remove it at the end."""
    check_here(target, argument)
    with writing_to(target, argument), ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = stack.enter_context(scratch_directory(target.parent, target.name))
        except FileNotFoundError as error:
            raise InputError(
                f"cannot write to {target}: no directory can be made there; give `{argument}` a writable"
                " path",
                argument=argument,
            ) from error
        yield aside


def _check_no_directory(target: Path, argument: str) -> None:
    if target.is_dir():
        raise InputError(f"{argument} {target} is a directory; give the path of a file", argument=argument)


def is_full(error: OSError) -> bool:
    """Return whether an error tells of a full disk, or of one on which the user may have no more."""
    return error.errno in _FULL


def _explain(error: OSError, target: Path, argument: str) -> Exception:
    if is_full(error):
        return WorkError(f"the disk that holds {target} is full; nothing was written there")
    if error.errno == errno.EFBIG:
        return WorkError(f"a file of {target} is larger than may be there; nothing was written there")
    if error.errno in _NOT_WRITABLE:
        return InputError(
            f"cannot write to {target}: {error.strerror}; give `{argument}` a writable path",
            argument=argument,
        )
    if error.errno is None:
        # NumPy's error when fewer bytes were written than asked
        return WorkError(f"writing {target} failed: {error}; is the disk full? Nothing was written there")
    return error
