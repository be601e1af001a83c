"""The progress of a build, from the phases that TensorRT reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlnext.types import Progress


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Nested phases as one fraction that only grows."""

    def __init__(self) -> None:
        self._running: dict[str, _Phase] = {}
        self.fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Start a phase of ``steps`` steps within ``parent``."""
        self._running[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Record that step number ``step`` of a phase is done."""
        phase: _Phase | None = self._running[name]
        done = 0.0
        self._running[name].done = step + 1
        while phase is not None:
            done = min((phase.done + done) / phase.steps, 1.0)
            phase = self._running.get(phase.parent or "")
        self.fraction = max(self.fraction, done)

    def finish(self, name: str) -> None:
        """End a phase."""
        self._running.pop(name, None)


def make_monitor(library: Any, report: Progress) -> Any:
    """Return an ``IProgressMonitor`` of ``library`` that calls ``report``.

    Ctrl-C ends the build and sets ``interrupted``.
    """

    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.phases = Phases()
            self.interrupted = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, parent, steps)

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)

        def step_complete(self, name: str, step: int) -> bool:
            try:
                self.phases.step(name, step)
                report(name.lower(), self.phases.fraction)
            except KeyboardInterrupt:
                # no exception may pass through TensorRT
                self.interrupted = True
            return not self.interrupted

    return Monitor()
