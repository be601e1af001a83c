"""The results of jobs: their files, and a ledger with a line for each job that was done or has failed."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from controlnext.bundle.files import new_file, sha256
from controlnext.errors import InputError, WorkError
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.table import write_table

LEDGER = "results.jsonl"
TABLE = "results.parquet"
_PARTS = ".parts"
"""Directory of the ledgers of workers, until they are joined with the whole one."""
_LOCK = ".lock"
_PATIENCE = 60.0
"""Seconds for workers to end when what gave them jobs has ended."""
_AGAIN = "run again to continue"

Record = dict[str, Any]
"""A line of the ledger: ``id``, ``job`` (:attr:`Job.digest`), and either ``files``, ``seed``,
``seconds``, ``backend`` and ``checksum`` (the SHA-256 of each file) or ``error``."""


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
        """Write a record; raise :class:`WorkError` where the disk is full: then nothing of it is there."""
        line, before = msgspec.json.encode(record) + b"\n", os.fstat(self._file).st_size
        try:
            # in one call, as a rule: a process that is killed leaves a part of a line at most
            while line:
                line = line[self._write(line) :]
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


class JobResults:
    """The directory with the results of one process or cluster; made by :func:`open_results`.

    A job may have several records: one in the ledger and those of workers, of which one died and another did
    the job again. The one that counts is that of the files as they are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / LEDGER
        self._found: dict[str, list[Record]] = {}
        self._of_workers: set[str] = set()
        self._read = Counter[Path]()
        self.look()

    def look(self) -> None:
        """Read what was added to the ledger and to those of workers since the last time."""
        for path in (self._path, *sorted((self.directory / _PARTS).glob("*.jsonl"))):
            for record in self._added(path):
                self._found.setdefault(record["id"], []).append(record)
                if path != self._path:
                    self._of_workers.add(record["id"])

    def done(self, job: Job) -> Record | None:
        """Return the record of a job that was done before: it was the same, its files are as written."""
        found = reversed(self._found.get(job.id, ()))
        return next((one for one in found if one.get("job") == job.digest and self._is_right(one)), None)

    def prepare(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that are to be done; forget what the ledger said of them, with their files, and of
        failures."""
        kept = {job.id: record for job in jobs if (record := self.done(job))}
        left = [job for job in jobs if job.id not in kept]
        stale = _files(record for job in left for record in self._found.get(job.id, ()))
        # the files first: a record without them is none, files without a record would stay
        for name in stale - _files(kept.values()):
            (self.directory / name).unlink(missing_ok=True)
        (self.directory / TABLE).unlink(missing_ok=True)
        self._write([*kept.values(), *self._others(jobs)])
        return left

    def part(self, name: str) -> Ledger:
        """Return a new ledger of a worker; those of all are joined when the results are opened or joined."""
        directory = self.directory / _PARTS
        directory.mkdir(exist_ok=True)
        return Ledger(directory / f"{name}.jsonl", FileLock(directory / f"{name}{_LOCK}"))

    def whole(self) -> Ledger:
        """Return the ledger itself, for a worker that is the only one."""
        return Ledger(self._path)

    def join(self, jobs: Sequence[Job], *, table: bool) -> list[Record]:
        """Write and return one record for each job, in the order of the jobs; ``table``: as Parquet too.

        Raises :class:`WorkError` if a worker does not end.
        """
        _wait_for_workers(self.directory)
        self.look()
        first = [self._final(job) for job in jobs if job.id in self._found]
        self._write([*first, *self._others(jobs)])
        if table:
            write_table(self.directory / TABLE, first)
        return first

    def _final(self, job: Job) -> Record:
        """Return the record of a job that is right: of those of workers the one whose files are there."""
        found = self._found[job.id]
        if job.id not in self._of_workers:
            return found[-1]
        failed = [record for record in found if "error" in record]
        lost = {"id": job.id, "job": job.digest, "error": f"its files are not as written; {_AGAIN}"}
        return self.done(job) or [lost, *failed][-1]

    def _others(self, jobs: Sequence[Job]) -> Iterator[Record]:
        """Yield the records of jobs that are no longer asked for, but for failures and for those whose files
        have the names of jobs that are."""
        asked, taken = {job.id for job in jobs}, {name for job in jobs for name in job.names}
        for found in (found for name, found in self._found.items() if name not in asked):
            record = next(filter(self._is_right, reversed(found)), found[-1]) if found[1:] else found[0]
            if "error" not in record and not {Path(name).stem for name in _files([record])} & taken:
                yield record

    def _is_right(self, record: Record) -> bool:
        """Return whether the files of a record are there and as written."""
        paths = [self.directory / name for name in record.get("files", ())]
        if "error" in record or not all(path.is_file() for path in paths):
            return False
        # a machine that went down may have left less of a file than was written
        return "checksum" not in record or record["checksum"] == [sha256(path) for path in paths]

    def _added(self, path: Path) -> Iterator[Record]:
        """Yield the records that were added to a ledger; lines that were not written whole are none."""
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read[path])
            whole, end, _ = file.read().rpartition(b"\n")
        self._read[path] += len(whole + end)
        for line in whole.split(b"\n"):
            try:
                record = msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue
            known = isinstance(record, dict) and isinstance(record.get("id"), str)
            if known and {"error", "files"} & {*record}:
                yield record

    def _write(self, records: Iterable[Record]) -> None:
        """Replace the ledger, and have no other."""
        self._found = {record["id"]: [record] for record in records}
        self._of_workers = set()
        lines = b"".join(msgspec.json.encode(record) + b"\n" for (record,) in self._found.values())
        with new_file(self._path) as aside, aside.open("wb") as file:
            file.write(lines)
            file.flush()
            # before those of the workers go
            os.fsync(file.fileno())
        for path in (self.directory / _PARTS).glob("*"):
            path.unlink()
        self._read = Counter({self._path: len(lines)})


@contextmanager
def open_results(output: Path) -> Iterator[JobResults]:
    """Open the directory of results within the block, and make it if it is not there.

    Raises :class:`InputError` for a path that cannot be had, or that another process writes to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another process writes to {output}; wait for it, or give another directory", argument="output"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot write to {output}: {error.strerror}; give a directory", argument="output"
        ) from error
    try:
        _wait_for_workers(output)
        for left in output.glob(".*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        yield JobResults(output)
    finally:
        lock.release()


def _wait_for_workers(output: Path) -> None:
    """Wait until no worker has its ledger: those whose process was told to end or died are soon gone."""
    for path in (output / _PARTS).glob(f"*{_LOCK}"):
        try:
            with FileLock(path, timeout=_PATIENCE):
                pass
        except Timeout as error:
            raise WorkError(f"a worker of an earlier run still writes to {output}; {_AGAIN}") from error


def _files(records: Iterable[Record]) -> set[str]:
    """Return the names of the files of records; they are in no other directory."""
    return {Path(name).name for record in records for name in record.get("files", ())}
