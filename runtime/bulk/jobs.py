"""The jobs of a file: one line of JSON, or one row of Parquet, with the arguments of a call."""

from __future__ import annotations

import codecs
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from controlnext.errors import InputError
from controlnext.optional import extra
from controlnext.runtime.request import MOST_IMAGES

PARQUET = ".parquet"
GLOB = "control_glob"
"""The column with a pattern of paths: each file that it matches becomes the control image of a job."""
_NAMELESS = ""
"""The id of a job whose line gives none that can be used."""
_LARGEST = 2.0**64
"""Seeds, the largest integers, are smaller."""
_ID = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_NOT_OF_IDS = re.compile(r"[^\w.-]", re.ASCII)


@dataclass(frozen=True)
class Job:
    """A job: its id, which names its files, and the arguments of its call.

    ``problem``: the reason for which it cannot be done. ``basis``: a checksum of what its arguments are
    applied to (:func:`controlnext.runtime.bulk.basis.with_basis`).
    """

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    basis: str = ""

    @property
    def digest(self) -> str:
        """A checksum of arguments and basis: a job whose line was changed is another one."""
        content = msgspec.json.encode((self.arguments, self.basis), order="deterministic")
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def count(self) -> int:
        """The number of its images; 0 where that is not known."""
        each, prompt = self.arguments.get("num_images_per_prompt", 1), self.arguments.get("prompt")
        return each * (len(prompt) if isinstance(prompt, list) else 1) if isinstance(each, int) else 0

    @property
    def stems(self) -> list[str]:
        """The names of its files without their suffix."""
        several = self.count if 1 < self.count <= MOST_IMAGES else 0
        return [f"{self.id}-{number}" for number in range(1, several + 1)] or [self.id]

    @property
    def names(self) -> set[str]:
        """Its id, and the names of its files without their suffix."""
        return {self.id, *self.stems}


def read_jobs(jobs: Path) -> list[Job]:
    """Return the jobs of a file, those with a problem among them; ids are unique.

    Raises :class:`InputError` for a file that cannot be read, has no line of JSON, or no job.
    """
    rows = list(_parquet_rows(jobs) if _is_table(jobs) else _json_rows(jobs))
    if rows and all(isinstance(row, InputError) for _, row in rows):
        raise _unreadable(jobs, str(rows[0][1]))
    found: list[tuple[int, Job]] = []
    taken: dict[str, int] = {}
    for number, row in rows:
        for job in _jobs_of(row, number, jobs.parent.absolute()):
            # there are file systems where names that differ in case alone are one name
            names = {name.casefold(): name for name in job.names - {_NAMELESS}}
            if twice := sorted(taken.keys() & names.keys()):
                problem = (
                    f"line {number}: the id {names[twice[0]]!r} names a file of another job, that of line"
                    f" {taken[twice[0]]}; give another"
                )
                job, names = Job(_NAMELESS, {}, problem), {}
            taken |= dict.fromkeys(names, number)
            found.append((number, job))
    if not found:
        each = "row" if _is_table(jobs) else "JSON object a line"
        raise InputError(f"{jobs} has no job; give a file with one {each} for each", argument="jobs")
    return list(_named(found, {*taken}))


def _is_table(jobs: Path) -> bool:
    return jobs.suffix.lower() == PARQUET


def _named(found: Iterable[tuple[int, Job]], taken: set[str]) -> Iterator[Job]:
    """Yield the jobs; those without an id are called by their line, and by no name of another job."""
    for number, job in found:
        if job.id == _NAMELESS:
            name = f"line-{number}"
            while name in taken:
                # a sign that no id in a file has
                name += "+"
            taken.add(name)
            job = replace(job, id=name)
        yield job


def _json_rows(jobs: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line that is not empty, or the error of its reading."""
    try:
        with jobs.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    # what some editors and spreadsheets begin a file of UTF-8 with
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                try:
                    yield number, msgspec.json.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    yield number, InputError(f"line {number} is not JSON: {error}")
    except OSError as error:
        raise _unreadable(jobs, error.strerror or str(error)) from error


def _parquet_rows(jobs: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row."""
    with extra("ray", "pyarrow"):
        from pyarrow import ArrowException, parquet
    try:
        rows = parquet.read_table(jobs).to_pylist()
    except (OSError, UnicodeDecodeError, ArrowException) as error:
        raise _unreadable(jobs, str(error).splitlines()[0]) from error
    yield from enumerate(map(_cell, rows), start=1)


def _cell(value: Any) -> Any:
    """Return what a cell of a table, or a row of them, stands for.

    Integers beside an empty cell are floats there, or decimals, and an empty cell of floats may be NaN.
    """
    if isinstance(value, list):
        return [_cell(one) for one in value]
    if isinstance(value, dict):
        return {name: _cell(one) for name, one in value.items()}
    if not isinstance(value, (float, Decimal)):
        return value
    number = float(value)
    if math.isnan(number):
        return None
    # a decimal may have more digits than a float
    return int(value) if number.is_integer() and abs(Decimal(value)) < _LARGEST else number


def _unreadable(jobs: Path, reason: str) -> InputError:
    return InputError(
        f"cannot read {jobs}: {reason}; give a file with one JSON object a line, or a Parquet file",
        argument="jobs",
    )


def _jobs_of(row: Any, number: int, directory: Path) -> Iterator[Job]:
    """Yield the jobs of a row: one, or one for each file that its pattern matches."""
    if isinstance(row, InputError):
        yield Job(_NAMELESS, {}, str(row))
        return
    if not isinstance(row, dict):
        yield Job(_NAMELESS, {}, f"line {number} is not a JSON object")
        return
    # as an empty cell of a table: the argument has its default
    arguments = {name: value for name, value in row.items() if value is not None}
    given = arguments.pop("id", number)
    name = str(given)
    if isinstance(given, bool) or not isinstance(given, (str, int)) or not _ID.fullmatch(name):
        accepted = "give letters, digits, dots, dashes and underscores, at most 128"
        yield Job(_NAMELESS, {}, f"line {number}: the id {name[:80]!r} cannot name a file; {accepted}")
        return
    pattern = arguments.pop(GLOB, None)
    if pattern in (None, ""):
        yield Job(name, arguments)
    elif not isinstance(pattern, str):
        yield Job(name, {}, f"{GLOB} is {str(pattern)[:80]}; it must be a text")
    elif "control_image" in arguments:
        yield Job(name, {}, f"control_image and {GLOB} are both given; give one of them")
    elif paths := matches(pattern, directory):
        yield from _jobs_of_files(name, arguments, paths)
    else:
        yield Job(name, {}, f"no file matches {GLOB} {pattern!r}")


def _jobs_of_files(name: str, arguments: Mapping[str, Any], paths: Iterable[Path]) -> Iterator[Job]:
    """Yield a job for each control image, with an id of its own."""
    first: dict[str, Path] = {}
    for path in paths:
        try:
            one = _id_with(name, path.stem)
        except UnicodeEncodeError:
            yield Job(_NAMELESS, {}, f"the name of {str(path)!r} is not UTF-8; rename the file")
            continue
        if (other := first.setdefault(one.casefold(), path)) == path:
            yield Job(one, {**arguments, "control_image": str(path)})
        else:
            same = f"{other} and {path} have the same name but for directory, case or suffix: both would be"
            yield Job(_NAMELESS, {}, f"{same} job {one!r}; rename one, or give a pattern for one of them")


def _id_with(name: str, stem: str) -> str:
    """Return an id of an image's name: that itself, or what is left of it and a checksum of the whole."""
    one = f"{name}-{stem}"
    checksum = hashlib.sha256(one.encode()).hexdigest()[:8]
    return one if _ID.fullmatch(one) else f"{_NOT_OF_IDS.sub('_', one)[:119]}-{checksum}"


def matches(pattern: Any, directory: Path) -> list[Path]:
    """Return the files that a pattern, relative to ``directory``, matches, in the order of their names.

    ``**`` matches directories below one another. What is no pattern, or too long for one, matches nothing.
    """
    try:
        anchor = Path(pattern).anchor
        below = Path(pattern).relative_to(anchor)
        paths = (directory / anchor).glob(str(below)) if below.parts else ()
        return sorted(path for path in paths if path.is_file())
    except (TypeError, ValueError, NotImplementedError, OSError):
        return []
