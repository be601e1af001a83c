"""Messages between the benchmark and the processes that it measures, one line of JSON each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    ``origin``; empty if nothing has to be made. ``changes``: the fields of :class:`Work` that its images have
    other values of than those of the other targets.
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
    changes: Mapping[str, Any] = field(default_factory=dict)

    def own(self, work: Work) -> Work:
        """Return ``work`` with the target's changes."""
        return msgspec.structs.replace(work, **self.changes)


class Work(msgspec.Struct, frozen=True):
    """The request of a run: pixels, images per batch, frames of a clip; and of an image its denoising
    steps, sampler and guidance scale (None: the family's), and how it multiplies less.

    ``guidance_end``, ``cache_interval``: as in a call of the runtime's pipeline. ``tiny``: whether the tiny
    VAE of previews decodes. The batch of a denoising step has two rows per image, as with classifier-free
    guidance, unless the guidance scale is 1 or less.
    """

    height: int
    width: int
    batch: int = 1
    frames: int = 1
    steps: int = 1
    sampler: str | None = None
    guidance: float | None = None
    guidance_end: float = 1.0
    cache_interval: int = 1
    tiny: bool = False

    @property
    def rows(self) -> int:
        """Return the batch size of the denoiser."""
        return self.batch if self.guidance is not None and self.guidance <= 1 else 2 * self.batch

    @property
    def size(self) -> tuple[int, ...]:
        """Return height, width, batch and frames."""
        return self.height, self.width, self.batch, self.frames


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

    The answer has a sample for each run but the warm-up. ``keep``: path of a file for the last image, an
    array (N, height, width, 3) of uint8; empty for none. ``calls``: path of a file with the calls of
    :class:`~controlnext.bench.quality.Exam`, whose images are kept in place of those of runs.
    """

    task: TurnKind
    work: Work
    runs: int
    cold: bool = False
    keep: str = ""
    calls: str = ""


class Answer(msgspec.Struct, frozen=True):
    """Answer to a request: ``samples``, the seconds by part; ``peak``, the process's peak memory in bytes; or
    ``error``, the reason why there is no sample."""

    samples: list[Seconds] = []
    peak: int = 0
    error: str = ""
