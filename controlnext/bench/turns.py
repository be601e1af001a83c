"""Turns of targets, each in its own process, all with the same number of threads."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from controlnext.bench.messages import Answer, Begin, Holds, Seconds, Target, Turn, TurnKind, Work
from controlnext.bench.prepare import copy_without_engines
from controlnext.bench.quality import Gallery
from controlnext.bench.results import BYTES, SECONDS, Measurement, Missing, summarize
from controlnext.bundle.format import ENGINES
from controlnext.bundle.scratch import scratch_directory
from controlnext.closeable import Closeable
from controlnext.errors import WorkError

logger = logging.getLogger(__name__)

Samples = dict[str, list[Seconds]]
"""Samples by the name of the measurement."""

REST = 0.2
"""Pause before a turn in seconds: threads of the previous target still spin, ONNX Runtime's for 45 ms,
PyTorch's for 10 ms."""
LOADS = ("load first", "load again")
LIBRARIES = int(0.6e9)
"""Estimated bytes of a process besides its weights."""


@dataclass(frozen=True)
class TurnPlan:
    """Settings of all turns: ``rounds`` of turns with ``runs`` measured runs each.

    ``threads``: of each process. ``room``: bytes of memory for all processes that are open at the same time.
    ``report``: callback that gets the measurement and the target of each turn. ``gallery``: where the images
    of the measurement ``image`` are kept; None if they are not.
    """

    threads: int
    rounds: int
    runs: int
    room: float
    report: Callable[[str], None] = lambda _turn: None
    gallery: Gallery | None = None


@dataclass
class Log:
    """Outcome of the turns; for the fields see :class:`controlnext.bench.results.Results`."""

    measurements: list[Measurement] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    groups: dict[str, list[list[str]]] = field(default_factory=dict)
    turns: list[str] = field(default_factory=list)


class Child(Closeable):
    """The process of a target: :mod:`controlnext.bench.worker`."""

    def __init__(self, target: Target, threads: int) -> None:
        self.target, self.threads = target, threads
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._launched = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "controlnext.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )

    def begin(self, holds: Holds) -> Answer:
        """Open the target in the process; raise :class:`WorkError` with the reason if that fails."""
        return self.ask(Begin(self.target, holds, self.threads, self._launched))

    def ask(self, request: Begin | Turn) -> Answer:
        """Send a request and return the answer; raise :class:`WorkError` with the reason if the target
        fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise WorkError(self._ending())
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error:
            raise WorkError(answer.error)
        return answer

    def _ending(self) -> str:
        status = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with status {status}{': ' + lines[-1] if lines else ''}"

    def close(self) -> None:
        """End the process and release its files."""
        if self._process.stdin is not None:
            # closing flushes the buffer, which fails if the process has died
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()


def in_groups(targets: Sequence[Target], holds: Holds, room: float) -> Iterator[list[Target]]:
    """Yield groups of ``targets`` in their order that fit into ``room`` bytes, with at least one target
    each."""
    group: list[Target] = []
    for target in targets:
        if group and sum(_size(one, holds) + LIBRARIES for one in (*group, target)) > room:
            yield group
            group = []
        group.append(target)
    if group:
        yield group


def _size(target: Target, holds: Holds) -> int:
    return target.denoiser if holds == "denoiser" else target.weights


def run_warm(
    targets: Sequence[Target],
    holds: Holds,
    items: Sequence[tuple[str, TurnKind, Work]],
    plan: TurnPlan,
    log: Log,
) -> None:
    """Measure ``items`` (name, task, size) with processes that stay open between turns."""
    for group in in_groups(targets, holds, plan.room):
        log.groups.setdefault(holds, []).append([target.name for target in group])
        with contextlib.ExitStack() as opened:
            children = []
            for target in group:
                child = opened.enter_context(Child(target, plan.threads))
                try:
                    child.begin(holds)
                except WorkError as error:
                    log.missing += [Missing(target.name, n, target.own(w), str(error)) for n, _, w in items]
                else:
                    children.append(child)
            for measure, task, work in items:
                _take_turns(children, measure, Turn(task, work, plan.runs), plan, log)
                if plan.gallery is not None and task == "image":
                    _sit_exams(children, work, plan.gallery, log)


def _sit_exams(children: Sequence[Child], work: Work, gallery: Gallery, log: Log) -> None:
    """Have the targets that were measured make the images that they are judged by."""
    measured = {found.target for found in log.measurements if found.measure == "image"}
    for child in children:
        turn = gallery.turn(child.target, work) if child.target.name in measured else None
        if turn is not None:
            try:
                child.ask(turn)
            except WorkError as error:
                logger.warning("%s is not judged: %s", child.target.name, error)


def _take_turns(children: Sequence[Child], measure: str, turn: Turn, plan: TurnPlan, log: Log) -> None:
    keep = plan.gallery.path if plan.gallery is not None and turn.task == "image" else None
    takers, works = {}, {}
    for child in children:
        name, work = child.target.name, child.target.own(turn.work)
        own = msgspec.structs.replace(turn, work=work, keep=keep(name) if keep else "")
        takers[name], works[name] = partial(_take_turn, child, measure, own), work
    _rounds(takers, (measure,), works, plan, log)


def _take_turn(child: Child, measure: str, turn: Turn) -> Samples:
    return {measure: child.ask(turn).samples}


def run_cold(
    targets: Sequence[Target], work: Work, measures: Sequence[str], plan: TurnPlan, log: Log
) -> None:
    """Measure the time from the start of a process to its ``first`` image, and its peak ``memory``."""

    def take(target: Target) -> Samples:
        with Child(target, plan.threads) as child:
            (opened,) = child.begin("pipeline").samples
            answer = child.ask(Turn("image", target.own(work), 1, cold=True))
        (drawn,) = answer.samples
        seconds = {part: opened.get(part, 0.0) + drawn.get(part, 0.0) for part in (*opened, *drawn)}
        return {"first": [seconds], "memory": [{"peak": float(answer.peak)}]}

    takers = {one.name: partial(take, one) for one in targets}
    works = {one.name: one.own(work) for one in targets}
    _rounds(takers, measures, works, plan, log, warm_up=1)


def run_loads(targets: Sequence[Target], directory: Path, plan: TurnPlan, log: Log) -> None:
    """Measure loading every graph of a bundle, without cached engines and again with them.

    It works on copies of the bundles in a temporary directory in ``directory``.
    """

    def take(target: Target, copy: Path) -> Samples:
        shutil.rmtree(copy / ENGINES, ignore_errors=True)
        samples: Samples = {}
        for measure in LOADS:
            with Child(replace(target, bundle=str(copy)), plan.threads) as child:
                (opened,) = child.begin("everything").samples
            samples[measure] = [{"load": opened["load"]}]
        return samples

    directory.mkdir(parents=True, exist_ok=True)
    # linked copies must be removed: some readers refuse a weights file with two links
    with scratch_directory(directory, "load") as scratch:
        copies = {
            one.name: copy_without_engines(Path(one.bundle), scratch / str(number))
            for number, one in enumerate(targets)
        }
        takers = {one.name: partial(take, one, copies[one.name]) for one in targets}
        _rounds(takers, LOADS, dict.fromkeys(takers), plan, log, warm_up=1)


def _rounds(
    takers: Mapping[str, Callable[[], Samples]],
    measures: Sequence[str],
    works: Mapping[str, Work | None],
    plan: TurnPlan,
    log: Log,
    warm_up: int = 0,
) -> None:
    """Call ``takers``, the turns by target, round after round; the first ``warm_up`` rounds are not
    counted. ``works``: what each runs."""
    found: dict[str, dict[str, list[list[Seconds]]]] = defaultdict(lambda: defaultdict(list))
    failed: dict[str, str] = {}
    for number in range(warm_up + plan.rounds):
        for name, take in takers.items():
            if name in failed:
                continue
            plan.report(f"{measures[0]}: {name}")
            time.sleep(REST)
            try:
                samples = take()
            except WorkError as error:
                failed[name] = str(error)
                continue
            log.turns.append(name)
            if number >= warm_up:
                for measure, some in samples.items():
                    found[name][measure].append(some)
    for name in takers:
        for measure in measures:
            if name in failed:
                log.missing.append(Missing(name, measure, works[name], failed[name]))
            else:
                unit = BYTES if measure == "memory" else SECONDS
                log.measurements.append(summarize(name, measure, works[name], found[name][measure], unit))
