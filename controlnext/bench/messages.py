"""What the benchmark and the processes that it measures tell each other: one line of JSON a message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

Seconds = dict[str, float]
"""Of the parts of something, by name."""
Option = str | bool | None
Holds = Literal["denoiser", "pipeline", "everything"]
"""What a process opens at its beginning: what steps need, nothing before an image needs it, every graph."""
TurnKind = Literal["step", "image"]


@dataclass(frozen=True)
class Target:
    """One way of running a model.

    ``runner``: the class in :data:`controlnext.bench.worker.RUNNERS` that knows how; it takes ``bundle``, the
    folder of the bundle whose weights are used, and ``options``. ``measures``: what can be measured of it.
    ``weights``: bytes of what it keeps in memory, estimated, and ``denoiser`` what of it is the denoiser's.
    ``maker``: what of :data:`controlnext.bench.prepare.MAKERS` makes what it runs, from the bundle
    ``origin``; empty where that is there already.
    """

    name: str
    runner: str
    bundle: str
    measures: tuple[str, ...]
    weights: int
    denoiser: int
    options: dict[str, Option] = field(default_factory=dict)
    maker: str = ""
    origin: str = ""


class Work(msgspec.Struct, frozen=True):
    """What is asked for: a size in pixels, images at a time, frames of a clip, steps of an image.

    A denoising step has two rows for every image, as with guidance.
    """

    height: int
    width: int
    batch: int = 1
    frames: int = 1
    steps: int = 1

    @property
    def rows(self) -> int:
        return 2 * self.batch


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Open ``target``. ``launched``: when the process was started, on the machine's monotonic clock.

    The answer has one sample, the parts of the time until then.
    """

    target: Target
    holds: Holds
    threads: int
    launched: float


class Turn(msgspec.Struct, frozen=True, tag=True):
    """Run ``task`` once without and ``runs`` times with counting; with ``cold`` the first run counts too.

    The answer has a sample for each counted run.
    """

    task: TurnKind
    work: Work
    runs: int
    cold: bool = False


class Answer(msgspec.Struct, frozen=True):
    """``samples``: seconds by part. ``peak``: the most memory in bytes that the process had so far.
    ``error``: why there is no sample."""

    samples: list[Seconds] = []
    peak: int = 0
    error: str = ""
