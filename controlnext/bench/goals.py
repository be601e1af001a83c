"""The ratios that are aimed at, as data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from controlnext.bench.contestants import OFFLOADED, WITHOUT_CONTROL
from controlnext.bench.results import BASELINE, Measurement, Ratio, Results
from controlnext.types import Precision

BFLOAT16 = "torch eager bfloat16"


@dataclass(frozen=True)
class Figure:
    """What was measured of a contestant, or ``part`` of that."""

    contestant: str
    measure: str
    part: str = ""

    def values(self, measurement: Measurement) -> list[float]:
        """Of each round; parts are known of all rounds together."""
        return [measurement.parts[self.part]] if self.part else measurement.rounds

    def __str__(self) -> str:
        return f"{self.contestant}, {self.part or self.measure}"


@dataclass(frozen=True)
class Goal:
    """``what`` is to be at most so many times ``against``.

    It stands for models of ``family`` (any, where that is empty) and of up to ``largest`` bytes, and for
    pictures of ``side`` pixels (any, where that is 0).
    """

    name: str
    what: Figure
    against: Figure
    at_most: float
    family: str = ""
    side: int = 0
    largest: float = math.inf


def _step(name: str, engine: str, against: str, at_most: float, family: str, side: int = 0) -> Goal:
    figures = Figure(engine, "step"), Figure(against, "step")
    return Goal(f"{family} step, {name}", *figures, at_most, family, side)


def _engines(make: Callable[[str], Goal]) -> list[Goal]:
    """The goal of each of our engines by itself."""
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
        "cold process to first picture, small model, fp32 engine against torch eager float32",
        Figure("engine fp32", "first"),
        Figure(BASELINE, "first"),
        0.25,
        largest=SMALL,
    ),
    *_engines(
        lambda engine: Goal(
            f"runtime work outside engines against a step, {engine}",
            Figure(engine, "picture", "sampler"),
            Figure(engine, "picture", "denoiser"),
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
)


def ratios(results: Results, family: str, size: int) -> list[Ratio]:
    """The goals whose figures were measured, of a model of ``family`` of ``size`` bytes."""
    found = []
    for goal in GOALS:
        pair = [results.find(figure.contestant, figure.measure) for figure in (goal.what, goal.against)]
        if goal.family not in ("", family) or size > goal.largest or None in pair:
            continue
        what, against = (m for m in pair if m is not None)
        sides = what.work and (what.work.height, what.work.width)
        if goal.side and sides != (goal.side, goal.side):
            continue
        rounds = zip(goal.what.values(what), goal.against.values(against), strict=True)
        each = [value / other for value, other in rounds]
        value = statistics.median(each)
        found.append(
            Ratio(
                goal.name,
                str(goal.what),
                str(goal.against),
                value,
                min(each),
                max(each),
                goal.at_most,
                value <= goal.at_most,
            )
        )
    return found
