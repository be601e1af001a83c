"""The process of one target: opens it, takes its turns and answers with their times.

Started as ``python -m controlnext.bench.worker``; requests come on stdin, answers go to stdout, a line each.
Libraries are imported only on request, so that a cold start measures the target alone.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from controlnext.bench.messages import Answer, Begin, Holds, Seconds, Turn, TurnKind, Work

if TYPE_CHECKING:
    import numpy as np

RUNNERS: Mapping[str, str] = MappingProxyType(
    {
        "engine": "controlnext.bench.engines:EngineRunner",
        "torch": "controlnext.bench.pytorch:TorchRunner",
        "pipeline": "controlnext.bench.stock:PipelineRunner",
        "controlnet": "controlnext.bench.peers:ControlNetRunner",
        "deepcache": "controlnext.bench.peers:DeepCacheRunner",
        "openvino": "controlnext.bench.peers:OpenVinoRunner",
        "sdcpp": "controlnext.bench.sdcpp:SdcppRunner",
        "graph": "controlnext.bench.engines:GraphRunner",
    }
)
"""Module and class of each runner, by a target's ``runner``."""

WARM_STEPS = 8
"""Steps of an image that warms up: enough to have taken every kind of step."""
LONG = 60.0
"""Seconds of a run above which a turn has only one measured run."""


class Runner(Protocol):
    """A runner of targets, made with a bundle, the number of threads and the target's options."""

    def begin(self, holds: Holds) -> Seconds:
        """Import the libraries and open the target; return the seconds of both, ``import`` and ``load``."""

    def turn(self, task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Run ``task`` ``runs`` times and return the seconds of each run by part."""


@runtime_checkable
class Artist(Protocol):
    """A runner whose images show what the bundle's model draws, so that they can be judged.

    ``images``: those of the last run, (N, H, W, 3) of uint8.
    """

    images: np.ndarray | None

    def draw(self, work: Work, calls: str) -> np.ndarray:
        """Return the images of an exam's ``calls``, a file as of :class:`~controlnext.bench.messages.Turn`,
        with the steps, sampler and guidance of ``work``."""


def main() -> None:
    """Answer requests until stdin ends."""
    began = time.monotonic()
    # text that libraries print on stdout goes to stderr, so that stdout has only answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    runner: Runner | None = None
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Begin | Turn)
        try:
            if isinstance(request, Begin):
                runner, samples = _begin(request, began)
            else:
                assert runner is not None
                samples = _take(runner, request)
            answer = Answer(samples, peak_memory())
        # a library may raise anything; that a target cannot run is a result
        except Exception as error:
            answer = Answer(error=_message(error))
        answers.write(msgspec.json.encode(answer) + b"\n")


def _begin(request: Begin, began: float) -> tuple[Runner, list[Seconds]]:
    target = request.target
    module, _, name = RUNNERS[target.runner].partition(":")
    cls: Any = getattr(import_module(module), name)
    runner: Runner = cls(Path(target.bundle), request.threads, **target.options)
    return runner, [{"start": began - request.launched, **runner.begin(request.holds)}]


def _take(runner: Runner, turn: Turn) -> list[Seconds]:
    runs = turn.runs
    if not turn.cold:
        warm = msgspec.structs.replace(turn.work, steps=min(turn.work.steps, WARM_STEPS))
        (first,) = runner.turn(turn.task, warm, 1)
        if sum(first.values()) * turn.work.steps / warm.steps > LONG:
            runs = 1
    samples = runner.turn(turn.task, turn.work, runs) if runs else []
    if turn.keep and isinstance(runner, Artist):
        _keep(runner, turn)
    return samples


def _keep(artist: Artist, turn: Turn) -> None:
    import numpy as np

    images = artist.draw(turn.work, turn.calls) if turn.calls else artist.images
    if images is not None:
        np.save(turn.keep, images)


def peak_memory() -> int:
    """Return this process's peak memory in bytes.

    It is read from /proc on Linux, where ``getrusage`` starts at the memory of the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _message(error: Exception) -> str:
    text = textwrap.shorten(str(error), 300)
    return text if type(error).__module__.startswith("controlnext.") else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
