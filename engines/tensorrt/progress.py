"""How far a build has come, from the phases that TensorRT tells of."""

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
    """Phases within phases, as one fraction that only grows."""

    def __init__(self) -> None:
        self._running: dict[str, _Phase] = {}
        self.fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._running[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Step number ``step`` of that phase is done."""
        phase: _Phase | None = self._running[name]
        done = 0.0
        self._running[name].done = step + 1
        while phase is not None:
            done = min((phase.done + done) / phase.steps, 1.0)
            phase = self._running.get(phase.parent or "")
        self.fraction = max(self.fraction, done)

    def finish(self, name: str) -> None:
        self._running.pop(name, None)


def make_monitor(library: Any, report: Progress) -> Any:
    """An ``IProgressMonitor`` of ``library`` that tells ``report`` what is built.

    Ctrl-C ends the build; ``interrupted`` says that it did.
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
