"""Ledgers of jobs: files with a line for each job that was done or has failed."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock

from controlnext.errors import InputError, WorkError

LEDGER = "results.jsonl"

Record = dict[str, Any]
"""A line of the ledger: ``id``, ``job`` (:attr:`Job.digest`), and either ``files``, ``seed``,
``seconds``, ``backend`` and ``checksum`` (the SHA-256 of each file) or ``error``. With both it is the record
of an earlier result that stays, and the reason for which it could not be replaced."""
_BEGINNING = b'{"id":"'
NO_JOB = ""
"""In place of :attr:`Job.digest`: what is left of a result, which no job takes for its own."""


class Ledger:
    """A file to which records are added, each at once and whole, by one process at a time.

    ``lock``: held until the file is closed or the process has ended.
    """

    def __init__(self, path: Path, lock: FileLock | None = None) -> None:
        self._path, self._lock = path, lock
        if lock is not None:
            lock.acquire()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record and wait until the disk has it; raise :class:`WorkError` where that is full: then
        nothing of it is there."""
        line, before = msgspec.json.encode(record) + b"\n", os.fstat(self._file).st_size
        try:
            # in one call, as a rule: a process that is killed leaves a part of a line at most
            while line:
                line = line[self._write(line) :]
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, before)
            raise WorkError(f"cannot write {self._path}: {error.strerror}") from error

    def _write(self, line: bytes) -> int:
        written = os.write(self._file, line)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
        if self._lock is not None:
            self._lock.release()


def record_in(line: bytes) -> Record | None:
    """Return the record in a line; None for a line that has none, or was not written whole."""
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    named = isinstance(record, dict) and all(isinstance(record.get(key), str) for key in ("id", "job"))
    return record if named and {"error", "files"} & {*record} else None


def check_ledger(path: Path) -> None:
    """Raise :class:`InputError` for a file that is no ledger: it would be replaced."""
    *whole, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    # the last line is not whole where the process that wrote it was killed, or the machine went down
    torn = not _is_json(last) and (whole or last.startswith(_BEGINNING) or _BEGINNING.startswith(last))
    lines = [*whole, *([] if torn else [last])]
    if any(record_in(line) is None for line in lines if line.strip()):
        raise InputError(
            f"{path} is not the ledger of a bulk run; move it, or give another directory", argument="output"
        )


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
