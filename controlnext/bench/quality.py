"""Quality of the images that targets make: nearness to the float32 engine's, and scores of an exam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from controlnext.bench.exam_calls import write_calls
from controlnext.bench.messages import Target, Turn, Work
from controlnext.bench.results import PSNR, Measurement
from controlnext.evaluation.metrics import psnr

STANDARD = "engine fp32"
"""The target whose images the others' are compared with."""


@dataclass(frozen=True)
class Exam:
    """Images that a model is judged by.

    ``calls``: arguments of the pipeline's calls that make them, with ``height`` and ``width``; steps, sampler
    and guidance come from the benchmark. ``score``: returns figures by name of all their images, (N, H, W, 3)
    in [0, 1].
    """

    calls: Sequence[Mapping[str, Any]]
    score: Callable[[np.ndarray], Mapping[str, float]]


class Gallery:
    """The images of the targets, in ``directory``: those of an ``exam`` where there is one, else those of the
    measured runs."""

    def __init__(self, directory: Path, exam: Exam | None) -> None:
        self._directory, self._exam = directory, exam
        self._calls = directory / "calls"
        if exam is not None:
            write_calls(self._calls, exam.calls)

    def path(self, target: str) -> str:
        """Return the path for the images of a target."""
        return str(self._directory / f"{target}.npy")

    def turn(self, target: Target, work: Work) -> Turn | None:
        """Return the request to make the images of the exam; None without one."""
        if self._exam is None:
            return None
        keep, calls = self.path(target.name), str(self._calls)
        return Turn("image", target.own(work), 0, cold=True, keep=keep, calls=calls)

    def judged(self, found: Measurement) -> Measurement:
        """Return a measurement of images with their quality."""
        own, standard = (Path(self.path(name)) for name in (found.target, STANDARD))
        if found.measure != "image" or not own.is_file():
            return found
        images = np.load(own, allow_pickle=False) / 255.0
        quality = dict(self._exam.score(images)) if self._exam is not None else {}
        if found.target != STANDARD and standard.is_file():
            expected = np.load(standard, allow_pickle=False) / 255.0
            if expected.shape == images.shape:
                quality[PSNR] = psnr(images, expected)
        return msgspec.structs.replace(found, quality=quality)
