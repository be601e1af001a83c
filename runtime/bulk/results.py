"""The results of jobs: their files, and a ledger with a line for each job that was done or has failed.

What was made once stays until what replaces it is there, with its line in the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from controlnext.bundle.files import new_file, sha256
from controlnext.bundle.scratch import remove_abandoned
from controlnext.errors import InputError, WorkError
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.ledger import LEDGER, NO_JOB, Ledger, Record, check_ledger, record_in
from controlnext.runtime.bulk.places import Places
from controlnext.runtime.bulk.table import TABLE, is_table, write_table

_PARTS = ".parts"
"""Directory of the ledgers of workers, until they are joined with the whole one."""
_LOCK = ".lock"
_PATIENCE = 60.0
"""Seconds for workers to end when what gave them jobs has ended."""
_AGAIN = "run again to continue"


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
        found = (one for one in reversed(self._found.get(job.id, ())) if one["job"] == job.digest)
        record = next(filter(self._is_right, found), None)
        return record and _good(record)

    def prepare(self, jobs: Sequence[Job], places: Places | None = None) -> list[Job]:
        """Return the jobs that are to be done; forget failures. What they made before stays until then.

        Raises :class:`InputError` if a result would replace what is not to be replaced, as ``places`` tell.
        """
        kept = {job.id: record for job in jobs if (record := self.done(job))}
        left = [job for job in jobs if job.id not in kept]
        if places is not None:
            places.check(left, jobs, self._found)
        first = [kept.get(job.id) or self._earlier(job.id) for job in jobs]
        self._settle(jobs, [record for record in first if record])
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
        self._settle(jobs, first)
        if table:
            write_table(self.directory / TABLE, first)
        elif is_table(self.directory / TABLE):
            # of jobs that were in a table
            (self.directory / TABLE).unlink()
        return first

    def _final(self, job: Job) -> Record:
        """Return the record of a job that is right: of those of workers the one whose files are there. Where
        it has failed it is that of an earlier result, if there is one, with the error."""
        found = self._found[job.id]
        if job.id not in self._of_workers and "error" not in found[-1]:
            return found[-1]
        if done := self.done(job):
            return done
        errors = [record["error"] for record in found if "error" in record]
        if not errors and all(record["job"] != job.digest for record in found):
            # not begun
            return found[-1]
        error = [f"its files are not as written; {_AGAIN}", *errors][-1]
        return {**(self._earlier(job.id) or {"id": job.id, "job": job.digest}), "error": error}

    def _earlier(self, name: str) -> Record | None:
        """Return the record of what is there of a job's results, whatever its arguments were."""
        found = [record for record in reversed(self._found.get(name, ())) if "files" in record]
        if right := next(filter(self._is_right, found), None):
            return _good(right)
        rest = (
            record for record in found if any((self.directory / one).exists() for one in _files([record]))
        )
        return next(({**_good(record), "job": NO_JOB} for record in rest), None)

    def _others(self, jobs: Sequence[Job], taken: set[str]) -> Iterator[Record]:
        """Yield the records of jobs that are no longer asked for, but for failures and without files that
        were ``taken`` by jobs that are."""
        asked = {job.id for job in jobs}
        for name, found in self._found.items():
            if name in asked:
                continue
            certain = len(found) == 1 and "error" not in found[0]
            record = found[0] if certain else self._earlier(name)
            if record and _files([record]) & taken and not self._is_right(record):
                record = _without(record, taken)
            if record and record["files"]:
                yield record

    def _settle(self, jobs: Sequence[Job], first: Sequence[Record]) -> None:
        """Make ``first`` the records of jobs, and remove the files that they replaced."""
        records = [*first, *self._others(jobs, _files(first))]
        # the files first: those without a record would stay
        for name in _files(one for found in self._found.values() for one in found) - _files(records):
            if (path := self.directory / name).is_file():
                path.unlink()
        self._write(records)

    def _is_right(self, record: Record) -> bool:
        """Return whether the files of a record are there and as written."""
        paths = [self.directory / name for name in record.get("files", ())]
        if not paths or not all(path.is_file() for path in paths):
            return False
        # a machine that went down may have left less of a file than was written
        return "checksum" not in record or record["checksum"] == [sha256(path) for path in paths]

    def _added(self, path: Path) -> Iterator[Record]:
        """Yield the records that were added to a ledger."""
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read[path])
            whole, end, last = file.read().rpartition(b"\n")
        self._read[path] += len(whole + end)
        if record_in(last) is not None:
            # nothing of it is missing but the end of its line
            whole, self._read[path] = whole + end + last, self._read[path] + len(last)
        yield from filter(None, map(record_in, whole.split(b"\n")))

    def _write(self, records: Iterable[Record]) -> None:
        """Replace the ledger, and have no other."""
        self._found = {record["id"]: [record] for record in records}
        self._of_workers = set()
        lines = b"".join(msgspec.json.encode(record) + b"\n" for (record,) in self._found.values())
        with new_file(self._path) as aside:
            aside.write_bytes(lines)
        for path in (self.directory / _PARTS).glob("*"):
            path.unlink()
        self._read = Counter({self._path: len(lines)})


@contextmanager
def open_results(output: Path) -> Iterator[JobResults]:
    """Open the directory of results within the block, and make it if it is not there.

    Raises :class:`InputError` for a path that cannot be had, or that another process writes to.
    """
    _check_names(output)
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
        remove_abandoned(output)
        yield _read(output)
    finally:
        lock.release()


def _check_names(output: Path) -> None:
    """Raise :class:`InputError` where something else has the name of a file of ours."""
    parts = output / _PARTS
    for path in (output / LEDGER, output / TABLE, output / _LOCK, parts, *parts.glob("*")):
        if path.is_symlink():
            # what is removed and written there would be somebody else's
            raise InputError(
                f"{path} is a link, where results have files of their own; remove it, or give another"
                " directory",
                argument="output",
            )
    odd = [path for name in (LEDGER, TABLE, _LOCK) if (path := output / name).is_dir()]
    odd += [path for path in parts.glob("*") if path.is_dir()]
    if odd or (parts.exists() and not parts.is_dir()):
        path, kinds = (odd[0], ("directory", "file")) if odd else (parts, ("file", "directory"))
        raise InputError(
            f"{path} is a {kinds[0]}, where a {kinds[1]} belongs; move it, or give another directory",
            argument="output",
        )
    # opening it would empty it
    lock = output / _LOCK
    if lock.exists() and (not lock.is_file() or lock.stat().st_size):
        raise InputError(
            f"{lock} is not the lock of a bulk run; move it, or give another directory", argument="output"
        )


def _read(output: Path) -> JobResults:
    try:
        check_ledger(output / LEDGER)
        return JobResults(output)
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename}: {error.strerror}; move it, or give another directory",
            argument="output",
        ) from error


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


def _good(record: Record) -> Record:
    """Return the record of an earlier result without the error of a later try."""
    return {key: value for key, value in record.items() if key != "error"}


def _without(record: Record, names: set[str]) -> Record:
    """Return what is left of a result without the files of these names."""
    stay = [number for number, name in enumerate(record["files"]) if name not in names]
    lists: Record = {
        key: [record[key][number] for number in stay] for key in ("files", "checksum") if key in record
    }
    return {**record, "job": NO_JOB, **lists}
