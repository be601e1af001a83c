"""Columns and cells of the parity table."""

from __future__ import annotations

from controlnext.bundle.manifest import ParityRow

PARITY_COLUMNS = ("output", "measure", "value", "allowed", "")


def parity_cells(row: ParityRow) -> tuple[str, str, str, str, str]:
    """Return a row of the parity table as text, with the columns :data:`PARITY_COLUMNS`."""
    bound = "at least" if row.at_least else "at most"
    verdict = "ok" if row.passed else "MISSED"
    return row.name, row.metric, _number(row.value), f"{bound} {_number(row.limit)}", verdict


def _number(value: float) -> str:
    return f"{value:.1e}" if abs(value) < 0.1 else f"{value:g}"
