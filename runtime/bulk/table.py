"""Results as a table: Parquet, with the keys of records as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controlnext.bundle.files import new_file
from controlnext.optional import extra

TABLE = "results.parquet"
_KEYS, _OUTCOMES = {"id", "job"}, {"files", "error"}
"""Keys that every record has, and those of which it has one."""


def is_table(path: Path) -> bool:
    """Return whether there is a table of records."""
    if not path.is_file():
        return False
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return False
    try:
        names = {*parquet.read_schema(path).names}
    except (OSError, ArrowException):
        return False
    return names >= _KEYS and bool(names & _OUTCOMES)


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as a Parquet file; a key that a record does not have is an empty cell."""
    with extra("ray", "pyarrow"):
        import pyarrow
        from pyarrow import parquet
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: _column(pyarrow, [record.get(name) for record in records]) for name in names}
    with new_file(path) as aside:
        parquet.write_table(pyarrow.table(columns), aside)


def _column(pyarrow: Any, values: list[Any]) -> Any:
    """Return an array of values; seeds may be larger than what Arrow takes for an integer by itself."""
    try:
        return pyarrow.array(values)
    except OverflowError:
        negative = any(value is not None and value < 0 for value in values)
        return pyarrow.array(values, pyarrow.decimal128(20) if negative else pyarrow.uint64())
