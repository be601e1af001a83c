"""A denoiser whose runs a test lets through one by one, and counts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from threading import Event, Semaphore

import numpy as np
import pytest

from controlnext.engines import Engine
from controlnext.types import Feed

PATIENCE = 60.0
"""Seconds after which a test gives up on what should happen at once."""


class Gate:
    """Stands before the runs of an engine; ``runs`` has the timesteps of each run's rows."""

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch, *, open_: bool = False) -> None:
        self.runs: list[list[float]] = []
        self.sizes: list[tuple[int, ...]] = []
        self._engine_run, self._open = engine._run, open_
        self._permits, self._arrivals = Semaphore(0), Semaphore(0)
        patch.setattr(engine, "_run", self._run)

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        self._arrivals.release()
        if not self._open:
            assert self._permits.acquire(timeout=PATIENCE)
        self.runs.append(feed["timestep"].tolist())
        self.sizes.append(feed["sample"].shape[2:])
        return self._engine_run(feed, replaced)

    def wait(self) -> None:
        """Wait until a run stands before the gate."""
        assert self._arrivals.acquire(timeout=PATIENCE)

    def let(self, runs: int) -> None:
        """Let so many runs through, and wait until the next one stands before the gate."""
        for _ in range(runs):
            self._permits.release()
            self.wait()

    def open(self) -> None:
        """Let everything through from now on."""
        self._open = True
        self._permits.release()


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until a condition of another thread holds, at most so many seconds."""
    pause = Event()
    for _ in range(int(patience / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("the condition did not come to hold")
