"""What a process holds over time: memory, files, threads, temporary files."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MOST_MB = 8.0
"""The most megabytes of resident memory that a phase may gain from its first quarter to its last."""
WARM_UP = 0.2
"""The part of a phase's readings that is its warm-up."""


@dataclass(frozen=True)
class Reading:
    """What the process holds: megabytes of memory; numbers of file handles, threads and files."""

    memory: float
    handles: int
    threads: int
    files: int


@dataclass
class SoakPhase:
    """A part of the soak test: its title, the results, those that were wrong, its time, the readings."""

    title: str
    done: int = 0
    wrong: int = 0
    seconds: float = 0.0
    readings: list[Reading] = field(default_factory=list)

    @property
    def _ends(self) -> tuple[list[Reading], list[Reading]]:
        warm = self.readings[int(WARM_UP * len(self.readings)) :]
        quarter = max(len(warm) // 4, 1)
        return warm[:quarter], warm[-quarter:]

    def ends(self, name: str) -> tuple[float, float]:
        """Return the medians of a reading's field over the first and the last quarter after the warm-up."""
        first, last = ([getattr(reading, name) for reading in end] for end in self._ends)
        return statistics.median(first), statistics.median(last)

    @property
    def faults(self) -> list[str]:
        """What went wrong, each in a few words."""
        found = [f"{self.wrong} results differ"] if self.wrong else []
        first, last = self.ends("memory")
        if last - first > MOST_MB:
            found.append(f"memory grew by {last - first:.1f} MB")
        for name in ("handles", "threads", "files"):
            first, last = self.ends(name)
            if last > first:
                found.append(f"{name}: {first:g} to {last:g}")
        return found

    def row(self) -> str:
        """Return the row of a table with :data:`COLUMNS`."""
        pairs = [self.ends(name) for name in ("memory", "handles", "threads", "files")]
        memory, *others = pairs
        cells = [f"{memory[0]:.1f} to {memory[1]:.1f} ({memory[1] - memory[0]:+.1f})"]
        cells += [f"{first:g} to {last:g}" for first, last in others]
        return f"| {self.title} | {self.done} | {self.wrong} | {' | '.join(cells)} | {self.seconds:.0f} |"


COLUMNS = ("phase", "results", "wrong", "memory in MB", "file handles", "threads", "files", "seconds")


class Meter:
    """Reads what this process holds; ``directories``: those whose files are counted."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories, self._process = list(directories), psutil.Process()
        self.phases: list[SoakPhase] = []

    def read(self) -> Reading:
        """Return what the process holds once all that is free was released."""
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        process = self._process
        files = sum(1 for directory in self._directories for _ in directory.rglob("*"))
        return Reading(process.memory_info().rss / 1e6, process.num_fds(), process.num_threads(), files)

    def measure(self, title: str, work: Iterator[bool], count: int, readings: int = 40) -> SoakPhase:
        """Do ``work``, which yields after each of ``count`` results whether it is right, with ``readings``
        meanwhile; keep and return the phase."""
        phase, every, started = SoakPhase(title), max(count // readings, 1), time.perf_counter()
        for right in work:
            phase.done += 1
            phase.wrong += not right
            if phase.done % every == 0:
                phase.readings.append(self.read())
        phase.seconds = time.perf_counter() - started
        phase.readings = phase.readings or [self.read()]
        self.phases.append(phase)
        print(phase.row(), flush=True)
        return phase


def print_head(print_line: Callable[[str], None]) -> None:
    """Print the head of the table."""
    print_line(f"| {' | '.join(COLUMNS)} |")
    print_line(f"|{' --- |' * len(COLUMNS)}")
