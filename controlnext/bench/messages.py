"""Messages between the benchmark and the processes that it measures, one line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

Seconds = dict[str, float]
"""Seconds of each part of a run, by the part's name."""
Option = str | bool | None
Holds = Literal["denoiser", "pipeline", "everything"]
"""The engines that a process opens first: the denoiser; a pipeline that opens engines when needed; every
graph."""
TurnKind = Literal["step", "image", "decode"]


@dataclass(frozen=True)
class Target:
    """A target of the benchmark: one way of running a model.

    ``runner``: key of its class in :data:`controlnext.bench.worker.RUNNERS`, which takes ``bundle``, the
    directory of the bundle whose weights are used, and ``options``. ``measures``: supported measurements.
    ``weights``: estimated bytes in memory, and ``denoiser`` the denoiser's share of them. ``maker``: key of
    the function in :data:`controlnext.bench.prepare.MAKERS` that makes the files to run from the bundle
    ``origin``; empty if nothing has to be made.
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
    """The size of a run: pixels, images per batch, frames of a clip, denoising steps of an image.

    The batch of a denoising step has two rows per image, as with classifier-free guidance.
    """

    height: int
    width: int
    batch: int = 1
    frames: int = 1
    steps: int = 1

    @property
    def rows(self) -> int:
        """Return the batch size of the denoiser."""
        return 2 * self.batch


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Request to open ``target``. ``launched``: start of the process on the machine's monotonic clock.

    The answer has one sample: the seconds since then by part.
    """

    target: Target
    holds: Holds
    threads: int
    launched: float


class Turn(msgspec.Struct, frozen=True, tag=True):
    """Request to run ``task`` once as a warm-up, unless ``cold``, and then ``runs`` times.

    The answer has a sample for each run but the warm-up.
    """

    task: TurnKind
    work: Work
    runs: int
    cold: bool = False


class Answer(msgspec.Struct, frozen=True):
    """Answer to a request: ``samples``, the seconds by part; ``peak``, the process's peak memory in bytes; or
    ``error``, the reason why there is no sample."""

    samples: list[Seconds] = []
    peak: int = 0
    error: str = ""
