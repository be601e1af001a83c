"""A cache of files that are slow to make: each entry is complete and undamaged, or absent."""

from __future__ import annotations

import errno
import logging
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from controlnext.bundle.files import sha256
from controlnext.bundle.names import check_inside
from controlnext.bundle.renames import put_directory
from controlnext.bundle.scratch import remove_abandoned, scratch_directory
from controlnext.errors import BundleError
from controlnext.regular import read_small

CHECKSUMS = "checksums.json"
_LARGE = 1 << 26
"""File size in bytes from which reading takes longer than a tick of the file system's clock."""

logger = logging.getLogger(__name__)


class _Entry(msgspec.Struct):
    """The record of a file of :func:`store`. ``stamp``: size, times and inode; None for a small file.
    ``bytes``: the size, which earlier versions did not write."""

    sha256: str
    stamp: list[int] | None
    bytes: int | None = None


def is_intact(directory: Path) -> bool:
    """Return whether :func:`store` made ``directory`` and no file has changed (:func:`find_damage`);
    remove what a killed process left beside it."""
    remove_abandoned(directory.parent, directory.name)
    try:
        if not (directory / CHECKSUMS).is_file():
            return False
    except OSError as error:
        logger.warning("%s is not used: %s", directory, error.strerror)
        return False
    damage = find_damage(directory)
    if damage:
        logger.warning("%s is damaged and will be made again: %s", directory, damage)
    return not damage


def find_damage(directory: Path) -> str:
    """Describe how the files of ``directory`` changed since :func:`store` made it; empty if they did not.

    A large file whose time of change is the same is not read. Other files are read: about a second a
    gigabyte.
    """
    try:
        check_inside(directory, directory / CHECKSUMS)
        wanted = msgspec.json.decode(read_small(directory / CHECKSUMS), type=dict[str, _Entry])
        # kernels of a built engine are in a directory beside it
        there = {path.name for path in directory.iterdir() if not path.is_dir()} - {CHECKSUMS}
        if others := sorted(wanted.keys() ^ there):
            return f"{', '.join(others)}: not both listed and there"
        damaged = [name for name, entry in wanted.items() if not _is_same(directory / name, entry)]
    except (OSError, ValueError, msgspec.DecodeError, RecursionError, BundleError) as error:
        # msgspec's is no ValueError before 0.21
        return str(error)
    return f"{', '.join(damaged)}: the checksum has changed" if damaged else ""


def _is_same(path: Path, entry: _Entry) -> bool:
    # a pipe would never end
    if not path.is_file():
        return False
    check_inside(path.parent, path)
    if entry.bytes is not None and path.stat().st_size != entry.bytes:
        return False
    return (entry.stamp is not None and _stamp(path) == entry.stamp) or sha256(path) == entry.sha256


def _entry(path: Path) -> _Entry:
    # read first: after that the file system's clock has advanced, and a later change has another time
    checksum, size = sha256(path), path.stat().st_size
    return _Entry(checksum, _stamp(path) if size >= _LARGE else None, size)


def _stamp(path: Path) -> list[int]:
    """Return facts of which every write changes one, even if the file's times are reset afterwards."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@contextmanager
def store(directory: Path) -> Iterator[Path]:
    """Yield a directory to write into; it replaces ``directory`` when the block ends without an error.

    Several threads and processes may do so at once: one of the results stays. Raises :class:`OSError` if
    nothing can be written. What a killed process left is removed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(directory.parent, directory.name) as scratch:
        made = scratch / "made"
        made.mkdir()
        yield made
        entries = {path.name: _entry(path) for path in sorted(made.iterdir())}
        (made / CHECKSUMS).write_bytes(msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")
        try:
            put_directory(made, directory, replace=True)
        except OSError as error:
            # another thread or process has just done so
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def discard(directory: Path) -> None:
    """Remove what :func:`store` made; files that cannot be removed stay."""
    shutil.rmtree(directory, ignore_errors=True)


def processor() -> str:
    """Return architecture, model and feature flags of this machine's processor.

    Weights packed for one vector width do not suit another.
    """
    facts = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    fields = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU part", "Features")
    facts += [line for line in lines if line.partition(":")[0].strip() in fields]
    return "\n".join(facts)
