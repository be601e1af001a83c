"""Places of the results of jobs, checked before anything is done: nothing that is not theirs is replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from controlnext.errors import InputError
from controlnext.runtime.bulk.basis import input_files
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.bulk.ledger import LEDGER, Record
from controlnext.runtime.bulk.table import TABLE, is_table

SUFFIXES: Mapping[str, str] = MappingProxyType({"image": ".png", "video": ".mp4"})
"""The suffix of results by a family's ``task`` in the registry."""
_ELSEWHERE = "give another directory"

_Identity = tuple[int, int]
"""Device and number of a file: the same for all of its names."""


@dataclass(frozen=True)
class Places:
    """Where the results of jobs go.

    Args:
        jobs: the file of the jobs; paths in it are relative to its directory.
        output: the directory of the results.
        suffix: of a result's file, of :data:`SUFFIXES`.
        table: whether there is a table of results besides the ledger.
    """

    jobs: Path
    output: Path
    suffix: str
    table: bool = False

    def check(
        self, left: Iterable[Job], jobs: Sequence[Job], records: Mapping[str, Sequence[Record]]
    ) -> None:
        """Raise :class:`InputError` if results of the jobs that are ``left`` to do, or their ledger, would
        replace the file of ``jobs``, a file that one of these reads, or one that is not in ``records``."""
        self._check_own()
        named = {name for found in records.values() for record in found for name in record.get("files", ())}
        places = [(job, place) for job in left for place in self._existing(job, records.get(job.id, ()))]
        if not places:
            return
        readers = dict(self._read_by(jobs))
        for job, place in places:
            if (reader := readers.get(_identity(place.lstat()))) is not None:
                raise InputError(
                    f"the result of job {job.id} would replace {place}, which {reader} reads; {_ELSEWHERE}",
                    argument="output",
                )
            if place.name not in named or not place.is_file():
                raise InputError(
                    f"the result of job {job.id} would replace {place}, which is not of an earlier run; move"
                    f" it, or {_ELSEWHERE}",
                    argument="output",
                )

    def _check_own(self) -> None:
        table = self.output / TABLE
        for place in (self.output / LEDGER, *([table] if self.table else [])):
            if place.exists() and place.samefile(self.jobs):
                raise InputError(
                    f"the results would replace the jobs in {self.jobs}; {_ELSEWHERE}", argument="output"
                )
        if self.table and table.exists() and not is_table(table):
            raise InputError(
                f"{table} is not a table of the results of a bulk run; move it, or {_ELSEWHERE}",
                argument="output",
            )

    def _existing(self, job: Job, records: Iterable[Record]) -> Iterator[Path]:
        """Yield the files that are there and that a job writes, or removes when it is done."""
        if job.problem is not None:
            return
        before = {name for record in records for name in record.get("files", ())}
        for name in sorted(before | {f"{stem}{self.suffix}" for stem in job.stems}):
            if os.path.lexists(place := self.output / name):
                yield place

    def _read_by(self, jobs: Iterable[Job]) -> Iterator[tuple[_Identity, str]]:
        """Yield the files that are read, links and what they lead to, and by what."""
        for job in jobs:
            for path in input_files(job, self.jobs.parent):
                for follow in (True, False):
                    try:
                        yield _identity(path.stat(follow_symlinks=follow)), f"job {job.id}"
                    except (OSError, ValueError):
                        continue
        yield _identity(self.jobs.stat()), "this command"


def _identity(stat: os.stat_result) -> _Identity:
    return stat.st_dev, stat.st_ino
