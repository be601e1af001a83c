"""The results of jobs: their files, and a ledger with a line for each job that was done or has failed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from controlnext.bundle.files import new_file, sha256
from controlnext.errors import InputError, WorkError
from controlnext.optional import extra
from controlnext.runtime.bulk.jobs import Job

LEDGER = "results.jsonl"
TABLE = "results.parquet"
_PARTS = ".parts"
"""Directory of the ledgers of workers, until they are joined with the whole one."""
_LOCK = ".lock"

Record = dict[str, Any]
"""A line of the ledger: ``id``, ``job`` (the digest of its arguments), and either ``files``, ``seed``,
``seconds``, ``backend`` and ``checksum`` (the SHA-256 of each file) or ``error``."""


class Ledger:
    """A file to which records are added, each at once and whole."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record; raise :class:`WorkError` where the disk is full."""
        try:
            # in one call: a process that is killed leaves a part of a line at most
            self._file.write(msgspec.json.encode(record) + b"\n")
        except OSError as error:
            raise WorkError(f"cannot write {self._file.name}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JobResults:
    """The directory with the results of one process or cluster; made by :func:`open_results`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / LEDGER
        self._records = self._read()

    def is_done(self, job: Job) -> bool:
        """Return whether a job was done before: its line is the same, its files are there and as written."""
        record = self._records.get(job.id)
        if record is None or "error" in record or record.get("job") != job.digest:
            return False
        paths = [self.directory / name for name in record["files"]]
        if not all(path.is_file() for path in paths):
            return False
        # a machine that went down may have left less of a file than was written
        return "checksum" not in record or record["checksum"] == [sha256(path) for path in paths]

    def prepare(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs that are to be done; forget what the ledger said of them, with their files, and of
        failures."""
        left = [job for job in jobs if not self.is_done(job)]
        again = {job.id for job in left}
        before, self._records = self._records, {}
        for name, record in before.items():
            if name not in again and "error" not in record:
                self._records[name] = record
        self._write()
        for name in _files(before.values()) - _files(self._records.values()):
            (self.directory / name).unlink(missing_ok=True)
        return left

    def part(self, name: str) -> Ledger:
        """Return a new ledger of a worker; those of all are joined when the results are opened or joined."""
        directory = self.directory / _PARTS
        directory.mkdir(exist_ok=True)
        return Ledger(directory / f"{name}.jsonl")

    def whole(self) -> Ledger:
        """Return the ledger itself, for a worker that is the only one."""
        return Ledger(self._path)

    def join(self, jobs: Iterable[Job], *, table: bool) -> list[Record]:
        """Write and return one record for each job, in the order of the jobs; ``table``: as Parquet too."""
        self._records = self._read()
        order = [job.id for job in jobs]
        first = [self._records[name] for name in order if name in self._records]
        self._records = {record["id"]: record for record in [*first, *self._records.values()]}
        self._write()
        if table:
            _write_table(self.directory / TABLE, first)
        return first

    def _read(self) -> dict[str, Record]:
        """Return the last record of each job in the ledger and in those of the workers."""
        paths = [self._path, *sorted((self.directory / _PARTS).glob("*.jsonl"))]
        return {record["id"]: record for path in paths for record in _read(path)}

    def _write(self) -> None:
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in self._records.values())
        with new_file(self._path) as aside:
            aside.write_bytes(lines)
        for path in (self.directory / _PARTS).glob("*.jsonl"):
            path.unlink()


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
        for left in output.glob(".*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        yield JobResults(output)
    finally:
        lock.release()


def _read(path: Path) -> Iterator[Record]:
    """Yield the records of a ledger; a last line that was not written whole, and others like it, are none."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            record = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("id"), str) and {"error", "files"} & {*record}:
            yield record


def _files(records: Iterable[Record]) -> set[str]:
    """Return the names of the files of records; they are in no other directory."""
    return {Path(name).name for record in records for name in record.get("files", ())}


def _write_table(path: Path, records: list[Record]) -> None:
    with extra("ray", "pyarrow"):
        import pyarrow
        from pyarrow import parquet
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: [record.get(name) for record in records] for name in names}
    with new_file(path) as aside:
        parquet.write_table(pyarrow.table(columns), aside)
