"""Files that are slow to make and can be made again: complete, undamaged, or not there."""

from __future__ import annotations

import errno
import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from controlnext.bundle.files import sha256

CHECKSUMS = "checksums.json"
_LARGE = 1 << 26
"""Bytes from which reading a file takes longer than its file system's clock takes to go on."""

logger = logging.getLogger(__name__)


class _Entry(msgspec.Struct):
    """Of a file of :func:`store`. ``stamp`` is what the file system says of it, and none of a small file."""

    sha256: str
    stamp: list[int] | None


def is_intact(directory: Path) -> bool:
    """Whether ``directory`` was made by :func:`store` and every file still is what it was; as
    :func:`find_damage`."""
    if not (directory / CHECKSUMS).is_file():
        return False
    damage = find_damage(directory)
    if damage:
        logger.warning("%s is damaged and made again: %s", directory, damage)
    return not damage


def find_damage(directory: Path) -> str:
    """What has happened to the files of ``directory`` since :func:`store` made it; empty where nothing has.

    A large file that has not been written to since, as its time of change says, is not read. Else this costs
    one reading: about a second a gigabyte.
    """
    try:
        wanted = msgspec.json.decode((directory / CHECKSUMS).read_bytes(), type=dict[str, _Entry])
        damaged = [name for name, entry in wanted.items() if not _is_same(directory / name, entry)]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{', '.join(damaged)}: not the checksum of when it was made" if damaged else ""


def _is_same(path: Path, entry: _Entry) -> bool:
    return (entry.stamp is not None and _stamp(path) == entry.stamp) or sha256(path) == entry.sha256


def _entry(path: Path) -> _Entry:
    # read first: by then the clock of the file system has gone on, and a later change has another time
    checksum, large = sha256(path), path.stat().st_size >= _LARGE
    return _Entry(checksum, _stamp(path) if large else None)


def _stamp(path: Path) -> list[int]:
    """Every write to a file changes one of these, whatever time it is given afterwards."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@contextmanager
def store(directory: Path) -> Iterator[Path]:
    """A place to write into that becomes ``directory`` when the block ends well, replacing what was there.

    Several threads and processes may do so at once: one of the results stays. Raises
    :class:`OSError` where nothing can be written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        yield made
        entries = {path.name: _entry(path) for path in sorted(made.iterdir())}
        (made / CHECKSUMS).write_bytes(msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")
        _replace(directory, made, Path(scratch) / "replaced")


def _replace(directory: Path, made: Path, replaced: Path) -> None:
    """Let ``made`` be ``directory``, or leave what another thread or process has just put there."""
    with suppress(FileNotFoundError):
        directory.rename(replaced)
    try:
        made.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def discard(directory: Path) -> None:
    """Remove what :func:`store` made, as far as that is allowed."""
    shutil.rmtree(directory, ignore_errors=True)


def processor() -> str:
    """Architecture, model and feature flags of this machine's processor.

    Weights that were laid out for one vector width do not suit another.
    """
    facts = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    fields = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU part", "Features")
    facts += [line for line in lines if line.partition(":")[0].strip() in fields]
    return "\n".join(facts)
