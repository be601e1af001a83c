"""Results of the benchmark: medians, quartiles, the machine; and tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from controlnext.bench.hardware import Hardware
from controlnext.bench.messages import Seconds, Work

SECONDS, BYTES = "s", "bytes"
PSNR = "PSNR"
JSON_KEYS: Mapping[str, str] = MappingProxyType({"target": "contestant"})
"""Names in bench.json that differ from the code's: files of earlier versions stay readable."""
BASELINE = "torch eager float32"
"""The target that the table compares the others with, if it was measured."""


class Measurement(msgspec.Struct, frozen=True, rename=JSON_KEYS):
    """A measurement of one target.

    ``samples``: all samples in the order in which they were taken, with their ``median`` and the quartiles
    ``low`` and ``high``. ``rounds``: the median of each turn. ``parts``: the medians of the samples' parts.
    ``work``: None for loading, which has no size. ``quality``: figures of the images that were made, by name,
    as of :mod:`controlnext.bench.quality`.
    """

    target: str
    measure: str
    work: Work | None
    unit: str
    median: float
    low: float
    high: float
    samples: list[float]
    rounds: list[float]
    parts: Seconds = {}
    quality: dict[str, float] = {}


class Missing(msgspec.Struct, frozen=True, rename=JSON_KEYS):
    """A measurement that failed, with the reason."""

    target: str
    measure: str
    work: Work | None
    reason: str


class Results(msgspec.Struct, frozen=True):
    """All results of a benchmark.

    ``family`` and ``size`` (in bytes) are those of the first bundle. ``turns``: targets in the order of their
    turns. ``groups``: by what the processes had open, the groups of targets that were in memory at the same
    time and took turns; groups were measured one after the other.
    """

    hardware: Hardware
    settings: dict[str, Any]
    bundles: list[str]
    family: str
    size: int
    measurements: list[Measurement]
    missing: list[Missing]
    groups: dict[str, list[list[str]]]
    turns: list[str]


def summarize(
    target: str,
    measure: str,
    work: Work | None,
    turns: Sequence[Sequence[Seconds]],
    unit: str = SECONDS,
) -> Measurement:
    """Summarize the samples of all ``turns``; a sample has the seconds (or bytes) of its parts."""
    samples = [sample for turn in turns for sample in turn]
    totals = [sum(sample.values()) for sample in samples]
    low, _, high = statistics.quantiles(totals, n=4, method="inclusive") if totals[1:] else totals * 3
    names = dict.fromkeys(name for sample in samples for name in sample)
    parts = {name: statistics.median(sample.get(name, 0.0) for sample in samples) for name in names}
    return Measurement(
        target,
        measure,
        work,
        unit,
        statistics.median(totals),
        low,
        high,
        totals,
        [statistics.median(sum(sample.values()) for sample in turn) for turn in turns],
        parts if len(parts) > 1 else {},
    )


COLUMNS = ("measured", "at", "target", "median", "quartiles", "against torch float32", "quality")
PART_COLUMNS = ("measured", "target", "parts")


def rows(results: Results) -> list[tuple[str, ...]]:
    """Return the table of all measurements, with the columns :data:`COLUMNS`."""
    at_baseline = {(m.measure, _size(m)): m.median for m in results.measurements if m.target == BASELINE}
    table: list[tuple[str, ...]] = []
    for m in results.measurements:
        baseline = at_baseline.get((m.measure, _size(m)))
        ratio = f"{m.median / baseline:.2f}" if baseline else ""
        spread = f"{quantity(m.low, m.unit)} to {quantity(m.high, m.unit)}"
        median, judged = quantity(m.median, m.unit), quality(m.quality)
        table.append((m.measure, at(m.work), m.target, median, spread, ratio, judged))
    return table + [(m.measure, at(m.work), m.target, "", m.reason, "", "") for m in results.missing]


def _size(found: Measurement) -> tuple[int, ...] | None:
    return None if found.work is None else found.work.size


def part_rows(results: Results) -> list[tuple[str, ...]]:
    """Return the table of the parts of images in their order, with the columns :data:`PART_COLUMNS`."""
    return [
        (
            m.measure,
            m.target,
            ", ".join(f"{name} {quantity(seconds, m.unit)}" for name, seconds in m.parts.items()),
        )
        for m in results.measurements
        if m.parts
    ]


def markdown(results: Results) -> str:
    """Return all tables as a Markdown page."""
    machine = results.hardware
    lines = [machine.title, ""]
    for columns, table in ((COLUMNS, rows(results)), (PART_COLUMNS, part_rows(results))):
        if table:
            lines += [*markdown_table(columns, table), ""]
    return "\n".join(lines)


def markdown_table(columns: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, table)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def at(work: Work | None) -> str:
    """Return the text of a size; empty for None."""
    if work is None:
        return ""
    several = f" x {work.frames} frames" if work.frames > 1 else ""
    steps = f", {work.steps} steps" if work.steps > 1 else ""
    sampler = f" of {work.sampler}" if work.sampler else ""
    rows = f"{work.rows} row{'s' if work.rows > 1 else ''}"
    return f"{work.width} x {work.height}{several}, {rows}{steps}{sampler}"


def quality(figures: Mapping[str, float]) -> str:
    """Return figures of quality: a PSNR in dB, shares and other scores to three digits."""
    return ", ".join(
        f"{name} {value:.1f} dB" if name == PSNR else f"{name} {value:.3f}" for name, value in figures.items()
    )


def quantity(value: float, unit: str) -> str:
    """Return a number to three digits with its unit."""
    if unit == BYTES:
        return f"{value / 1e9:.3g} GB"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
