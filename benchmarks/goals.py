"""The ratios that this project aims at, as data, compared with the results of a benchmark.

    controlnext bench build/sd15-fp32 build/sd15-int8 --output build/bench
    python benchmarks/goals.py build/bench/bench.json

A ratio is computed in each round, from turns within seconds of each other, and the median of the rounds
counts: the speed of a shared machine drifts, but for both alike. A goal without measurements is skipped.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from controlnext.bench.choices import OFFLOADED, PREVIEWS, WITHOUT_CONTROL
from controlnext.bench.results import BASELINE, Measurement, Results, markdown_table
from controlnext.types import Precision

BFLOAT16 = "torch eager bfloat16"


@dataclass(frozen=True)
class Figure:
    """A measurement of a target, or a ``part`` of it."""

    target: str
    measure: str
    part: str = ""

    def values(self, measurement: Measurement) -> list[float]:
        """Return the values of all rounds; a part has only one value for all of them."""
        return [measurement.parts[self.part]] if self.part else measurement.rounds

    def __str__(self) -> str:
        return f"{self.target}, {self.part or self.measure}"


@dataclass(frozen=True)
class Goal:
    """The goal that ``what`` divided by ``against`` is at most ``at_most``.

    It applies to models of ``family`` (empty: any) of up to ``largest`` bytes, at images of ``side`` pixels
    (0: any).
    """

    name: str
    what: Figure
    against: Figure
    at_most: float
    family: str = ""
    side: int = 0
    largest: float = math.inf


@dataclass(frozen=True)
class Ratio:
    """The ratio of a goal: the median, minimum and maximum over the rounds."""

    goal: Goal
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Tell whether the ratio meets the goal."""
        return self.value <= self.goal.at_most


def _step(name: str, engine: str, against: str, at_most: float, family: str, side: int = 0) -> Goal:
    figures = Figure(engine, "step"), Figure(against, "step")
    return Goal(f"{family} step, {name}", *figures, at_most, family, side)


def _engines(make: Callable[[str], Goal]) -> list[Goal]:
    """Return the goals of the engines of all precisions."""
    return [make(f"engine {precision}") for precision in Precision]


SMALL = int(0.5e9)

GOALS = (
    _step("fp32 engine against torch eager float32", "engine fp32", BASELINE, 0.40, "sd15"),
    _step("int8 engine against torch eager bfloat16", "engine int8", BFLOAT16, 0.45, "sd15"),
    *(
        _step(
            f"{precision} engine against the same without control",
            f"engine {precision}",
            f"engine {precision} {WITHOUT_CONTROL}",
            at_most,
            family,
        )
        for family, at_most in (("sd15", 1.10), ("sdxl", 1.05))
        for precision in Precision
    ),
    *_engines(
        lambda engine: Goal(
            f"loading a bundle the second time against the first, {engine}",
            Figure(engine, "load again"),
            Figure(engine, "load first"),
            0.15,
        )
    ),
    Goal(
        "cold process to first image, small model, fp32 engine against torch eager float32",
        Figure("engine fp32", "first"),
        Figure(BASELINE, "first"),
        0.25,
        largest=SMALL,
    ),
    *_engines(
        lambda engine: Goal(
            f"runtime work outside engines against a step, {engine}",
            Figure(engine, "image", "sampler"),
            Figure(engine, "image", "denoiser"),
            0.01,
            side=512,
        )
    ),
    *(
        Goal(
            f"peak memory, {engine} against torch eager float32",
            Figure(engine, "memory"),
            Figure(BASELINE, "memory"),
            0.8,
            family="sd15",
            side=512,
        )
        for engine in ("engine fp32", f"engine fp32 {OFFLOADED}")
    ),
    _step("int8 engine against torch eager bfloat16", "engine int8", BFLOAT16, 0.6, "sdxl", 512),
    *_engines(
        lambda engine: Goal(
            f"tiny decoder against the full one, {engine}",
            Figure(f"{engine} {PREVIEWS}", "decode"),
            Figure(engine, "decode"),
            0.12,
            family="sd15",
            side=512,
        )
    ),
)


COLUMNS = ("what", "ratio", "rounds", "at most", "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="bench.json of controlnext bench")
    given = parser.parse_args(arguments)
    found = ratios(msgspec.json.decode(given.results.read_bytes(), type=Results))
    print("\n".join(markdown_table(COLUMNS, [_row(ratio) for ratio in found])))


def ratios(results: Results) -> list[Ratio]:
    """Return the ratios of all goals that ``results`` has measurements for."""
    found = []
    for goal in GOALS:
        pair = [results.find(figure.target, figure.measure) for figure in (goal.what, goal.against)]
        if goal.family not in ("", results.family) or results.size > goal.largest or None in pair:
            continue
        what, against = (m for m in pair if m is not None)
        sides = what.work and (what.work.height, what.work.width)
        if goal.side and sides != (goal.side, goal.side):
            continue
        rounds = zip(goal.what.values(what), goal.against.values(against), strict=True)
        each = [value / other for value, other in rounds]
        found.append(Ratio(goal, statistics.median(each), min(each), max(each)))
    return found


def _row(ratio: Ratio) -> tuple[str, ...]:
    return (
        ratio.goal.name,
        f"{ratio.value:.3f}",
        f"{ratio.low:.3f} to {ratio.high:.3f}",
        f"{ratio.goal.at_most:g}",
        "ok" if ratio.passed else "MISSED",
    )


if __name__ == "__main__":
    main()
