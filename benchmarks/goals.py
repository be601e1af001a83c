"""The ratios that this project aims at, as data, compared with the results of a benchmark.

    controlnext bench build/sd15-fp32 build/sd15-int8 --output build/bench
    python benchmarks/goals.py build/bench/bench.json

A ratio is computed in each round, from turns within seconds of each other, and the median of the rounds
counts: the speed of a shared machine drifts, but for both alike. A goal without measurements is skipped.
Processors differ, so the first line names it with its instruction sets.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from controlnext.bench import choices
from controlnext.bench.choices import OFFLOADED, PREVIEWS, WITHOUT_CONTROL
from controlnext.bench.messages import Work
from controlnext.bench.results import BASELINE, Measurement, Results, markdown_table
from controlnext.types import Precision

BFLOAT16 = "torch eager bfloat16"


Asked = Mapping[str, Any]
"""Fields of :class:`~controlnext.bench.messages.Work`."""
PLAIN: Asked = MappingProxyType({"cache_interval": 1, "guidance_end": 1.0, "tiny": False, "guidance": None})
FULL_RUN: Asked = MappingProxyType({**PLAIN, "steps": 20})
LESS: Asked = MappingProxyType({**FULL_RUN, "cache_interval": 3, "guidance_end": 0.7, "tiny": True})
FEW_STEPS: Asked = MappingProxyType({**PLAIN, **choices.FEW_STEPS, "steps": 4, "tiny": True})
ENGINES, TORCHES = "engine *", "torch eager *"
_OTHER_GRAPHS = (WITHOUT_CONTROL, OFFLOADED, PREVIEWS)


@dataclass(frozen=True)
class Figure:
    """A measurement of a target, or a ``part`` of it.

    ``target``: its name, or with a ``*`` the pattern of several, of which the fastest counts. ``asked``: what
    was asked for; None for anything.
    """

    target: str
    measure: str
    part: str = ""
    asked: Asked | None = None

    def find(self, results: Results) -> Measurement | None:
        """Return the measurement; None if there is none. At several sizes the first one counts."""
        found: dict[str, Measurement] = {}
        for one in results.measurements:
            if one.measure == self.measure and self._names(one.target) and self._fits(one.work):
                found.setdefault(one.target, one)
        return min(found.values(), key=lambda one: one.median, default=None)

    def _names(self, target: str) -> bool:
        others = [end for end in _OTHER_GRAPHS if target.endswith(end) and not self.target.endswith(end)]
        return fnmatchcase(target, self.target) and not others

    def _fits(self, work: Work | None) -> bool:
        return not self.asked or all(getattr(work, name) == value for name, value in self.asked.items())

    def values(self, measurement: Measurement) -> list[float]:
        """Return the values of all rounds; a part has only one value for all of them."""
        return [measurement.parts[self.part]] if self.part else measurement.rounds

    def __str__(self) -> str:
        return f"{self.target}, {self.part or self.measure}"


@dataclass(frozen=True)
class Goal:
    """The goal that ``what`` divided by ``against`` is at most ``at_most``.

    It applies to models of ``family`` (empty: any) of up to ``largest`` bytes, at images of ``side`` pixels
    (0: any), on processors with the ``instructions`` (empty: any).
    """

    name: str
    what: Figure
    against: Figure
    at_most: float
    family: str = ""
    side: int = 0
    largest: float = math.inf
    instructions: str = ""

    def applies(self, results: Results, work: Work | None) -> bool:
        """Tell whether the goal is one of these results, with ``work`` measured."""
        sides = work and (work.height, work.width)
        return (
            self.family in ("", results.family)
            and results.size <= self.largest
            and (not self.side or sides == (self.side, self.side))
            and (not self.instructions or self.instructions in results.hardware.instructions)
        )


@dataclass(frozen=True)
class Ratio:
    """The ratio of a goal: the median, minimum and maximum over the rounds. ``names``: what was divided."""

    goal: Goal
    names: tuple[str, str]
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


def _image(name: str, what: Figure, against: Figure, at_most: float) -> Goal:
    return Goal(f"sd15 image, {name}", what, against, at_most, "sd15", 512)


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
        lambda engine: _image(
            f"with cache interval 3 against without, {engine}",
            Figure(f"{engine}, cache 3", "image", asked={**FULL_RUN, "cache_interval": 3}),
            Figure(engine, "image", asked=FULL_RUN),
            0.55,
        )
    ),
    _image(
        "fastest engine with cache interval 3, guidance to 0.7, tiny decoder, against plain torch",
        Figure(ENGINES, "image", asked=LESS),
        Figure(TORCHES, "image", asked=FULL_RUN),
        0.25,
    ),
    _image(
        "4 LCM steps, tiny decoder, fastest engine against torch",
        Figure(ENGINES, "image", asked=FEW_STEPS),
        Figure(TORCHES, "image", asked=FEW_STEPS),
        0.60,
    ),
    _image(
        "4 LCM steps, tiny decoder, fastest engine, against 20 guided steps with diffusers' ControlNet",
        Figure(ENGINES, "image", asked=FEW_STEPS),
        Figure("diffusers ControlNet float32", "image", asked=FULL_RUN),
        0.10,
    ),
    _image(
        "fastest engine, uncached, against stable-diffusion.cpp",
        Figure(ENGINES, "image", asked=PLAIN),
        Figure("stable-diffusion.cpp *", "image", asked=PLAIN),
        0.50,
    ),
    Goal(
        "step, fastest engine against OpenVINO without control",
        Figure(ENGINES, "step"),
        Figure(f"openvino * {WITHOUT_CONTROL}", "step"),
        1.05,
    ),
    *(
        Goal(
            f"{family} step, fastest engine against torch eager bfloat16, with AMX",
            Figure(ENGINES, "step"),
            Figure(BFLOAT16, "step"),
            0.70,
            family,
            instructions="amx_bf16",
        )
        for family in ("sd15", "sdxl")
    ),
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


COLUMNS = ("what", "measured", "ratio", "rounds", "at most", "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="bench.json of controlnext bench")
    given = parser.parse_args(arguments)
    results = msgspec.json.decode(given.results.read_bytes(), type=Results)
    found = ratios(results)
    print(results.hardware.title, "\n")
    print("\n".join(markdown_table(COLUMNS, [_row(ratio) for ratio in found])))


def ratios(results: Results) -> list[Ratio]:
    """Return the ratios of all goals that ``results`` has measurements for."""
    found = []
    for goal in GOALS:
        what, against = goal.what.find(results), goal.against.find(results)
        if what is None or against is None or not goal.applies(results, what.work):
            continue
        rounds = zip(goal.what.values(what), goal.against.values(against), strict=True)
        each = [value / other for value, other in rounds]
        names = what.target, against.target
        found.append(Ratio(goal, names, statistics.median(each), min(each), max(each)))
    return found


def _row(ratio: Ratio) -> tuple[str, ...]:
    return (
        ratio.goal.name,
        " / ".join(ratio.names),
        f"{ratio.value:.3f}",
        f"{ratio.low:.3f} to {ratio.high:.3f}",
        f"{ratio.goal.at_most:g}",
        "ok" if ratio.passed else "MISSED",
    )


if __name__ == "__main__":
    main()
