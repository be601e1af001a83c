"""A campaign: cases of all targets until the time or their number is over."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec

from fuzz.changes import apply
from fuzz.isolation import Outcome, Running
from fuzz.target import Case, Target
from fuzz.verdict import find_fault

CANARY = "nobody may read this"


@dataclass(frozen=True)
class Finding:
    """A case with a fault."""

    case: Case
    fault: str


@dataclass
class Tally:
    """What came of the cases: their number by target and kind of outcome, and the faults."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """The number of cases."""
        return self.outcomes.total()


class Campaign:
    """Cases in a directory ``root`` of their own."""

    def __init__(self, targets: dict[str, Target], root: Path) -> None:
        """Write the sound input of each target and use it once; a target that refuses it is an error."""
        self._targets, self._root = targets, root
        self._sound: dict[str, str] = {}
        for name, target in targets.items():
            target.write_sound(root / name)
            case, folder = Case(name, []), self._prepare(Case(name, []), f"{name}-sound")
            running = Running(target, folder)
            outcome = _wait(running)
            fault = find_fault(case, outcome, outcome.detail, folder)
            if fault or outcome.kind != "answered":
                raise RuntimeError(f"the sound input of {name} is not accepted: {fault or outcome.detail}")
            self._sound[name] = outcome.detail
            shutil.rmtree(folder)

    def proposals(self, seed: int) -> Iterator[Case]:
        """Yield cases without end, of the targets in turns; equal seeds give equal cases."""
        number = 0
        while True:
            for name, target in self._targets.items():
                yield target.propose(self._root / name, Random(f"{seed} {number} {name}"))
            number += 1

    def run(self, cases: Iterator[Case], jobs: int, until: float = float("inf")) -> Iterator[Tally]:
        """Run cases, ``jobs`` at once, until the clock shows ``until``; yield the tally after each."""
        # a collection in a child would copy the pages of all objects that it shares
        gc.collect()
        gc.freeze()
        tally, running, number = Tally(), {}, 0
        exhausted = False
        while running or not exhausted:
            while len(running) < jobs and not exhausted:
                case = next(cases, None)
                exhausted = case is None or time.monotonic() > until
                if case is not None and not exhausted:
                    number += 1
                    folder = self._prepare(case, f"case-{number}")
                    running[Running(self._targets[case.target], folder)] = case, folder
            for process in list(running):
                if outcome := process.poll():
                    self._judge(*running.pop(process), outcome, tally)
                    yield tally
            time.sleep(0.002)

    def _prepare(self, case: Case, name: str) -> Path:
        folder = self._root / name
        (folder / "outside").mkdir(parents=True)
        (folder / "outside" / "canary.txt").write_text(CANARY)
        shutil.copytree(self._root / case.target, folder / "input", copy_function=os.link)
        apply(case.changes, folder / "input")
        return folder

    def _judge(self, case: Case, folder: Path, outcome: Outcome, tally: Tally) -> None:
        fault = find_fault(case, outcome, self._sound[case.target], folder)
        if not fault and (folder / "outside" / "canary.txt").read_text() != CANARY:
            fault = "wrote outside"
        tally.outcomes[case.target, outcome.kind] += 1
        if fault:
            tally.findings.append(Finding(case, fault))
        shutil.rmtree(folder, ignore_errors=True)


def _wait(running: Running) -> Outcome:
    while (outcome := running.poll()) is None:
        time.sleep(0.005)
    return outcome


def read_seeds(directory: Path) -> list[Case]:
    """Return the cases that were found faulty once, in the order of their names."""
    return [msgspec.json.decode(file.read_bytes(), type=Case) for file in sorted(directory.glob("*.json"))]


def write_seed(directory: Path, name: str, case: Case) -> Path:
    """Keep a case as ``name`` in ``directory``."""
    file = directory / f"{name}.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(case), indent=2) + b"\n")
    return file
