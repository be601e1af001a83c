"""Controls added to a stock denoiser while a stock pipeline runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from controlnext.families import CachedFeature, Injection
from controlnext.models.cross_normalization import Control, CrossNormalization, inject
from controlnext.models.step_cache import cut
from controlnext.windows import Window


@dataclass(frozen=True)
class ControlInput:
    """One control for all steps of a run.

    ``image``: (1 or N, 3, H, W) in [0, 1], for a clip (1, frames, 3, H, W); repeated to the rows of a guided
    batch, as in the published pipelines. ``scales``: the result of :func:`scale_rows` for each step.
    """

    module: nn.Module
    image: Tensor
    scales: Sequence[Tensor]

    def control(self, step: int, rows: int, timestep: Tensor, frames: Sequence[int] | None) -> Control:
        """Return the control at a step, for a batch of ``rows``; for a clip, of the frames with these
        numbers."""
        image = self.image if frames is None else self.image[:, list(frames)]
        image = image.repeat(rows // image.shape[0], *[1] * (image.ndim - 1))
        scale = self.scales[step]
        scale = scale.expand(-1, rows // len(scale)).flatten()
        scale = scale if frames is None else scale.repeat_interleave(len(frames))
        return Control(self.module(image, timestep.expand(rows)), scale, self.module.scale)  # type: ignore[arg-type]


@contextmanager
def with_control(
    denoiser: nn.Module,
    injection: Injection,
    control_inputs: Sequence[ControlInput],
    windows: Sequence[Window] | None = None,
    cache: StepCache | None = None,
    **fixed: Tensor,
) -> Iterator[None]:
    """Run ``denoiser`` with control while the context is open; each call is the next step.

    With ``windows`` a call gets a whole clip (B, frames, ...), which is denoised window by window. ``cache``:
    the step cache; None for full steps only. ``fixed``: arguments that replace the caller's, with one row for
    the whole batch.
    """
    stock, normalization = denoiser.forward, CrossNormalization(injection)
    signature = inspect.signature(stock)
    (sample_name, *_), step = signature.parameters, -1

    def predict(arguments: dict[str, Any], sample: Tensor, frames: Sequence[int] | None) -> Tensor:
        rows, timestep = len(sample), arguments["timestep"]
        controls = [control_input.control(step, rows, timestep, frames) for control_input in control_inputs]
        with inject(denoiser, normalization, controls), cached(denoiser, cache, step, frames):
            return stock(**{**arguments, sample_name: sample, "return_dict": False})[0]

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        nonlocal step
        step += 1
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        sample = arguments[sample_name]
        arguments |= {name: row.expand(len(sample), -1) for name, row in fixed.items()}
        if windows is None:
            return (predict(arguments, sample, None),)
        total, count = None, sample.new_zeros(sample.shape[1])
        for window in windows:
            part, kept = slice(window.start, window.stop), slice(window.first, window.stop)
            noise = predict(arguments, sample[:, part], [0, *range(window.start + 1, window.stop)])
            if total is None:
                total = noise.new_zeros(len(noise), sample.shape[1], *noise.shape[2:])
            total[:, kept] += noise[:, window.first - window.start :]
            count[kept] += 1
        assert total is not None
        return (total / count.reshape(1, -1, 1, 1, 1),)

    denoiser.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        denoiser.forward = stock  # type: ignore[method-assign]


@dataclass(frozen=True)
class StepCache:
    """The step cache of a run: a full step every ``interval``, the features ``cached`` of a denoiser between.

    ``kept``: those of the last full step, for a clip of the frames with these numbers.
    """

    interval: int
    cached: Sequence[CachedFeature]
    kept: dict[tuple[int, ...], dict[str, Tensor]] = field(default_factory=dict)


def cached(
    denoiser: nn.Module, cache: StepCache | None, step: int, frames: Sequence[int] | None
) -> AbstractContextManager[None]:
    """Return the context in which ``denoiser`` runs at a step."""
    if cache is None or cache.interval == 1:
        return nullcontext()
    features = cache.kept.setdefault(tuple(frames or ()), {})
    return cut(denoiser, cache.cached, features, shallow=step % cache.interval > 0)


def scale_rows(scale: float | Sequence[float], guided: bool, unconditional: float) -> Tensor:
    """Return ``scale`` as (1, N), or (1, 1) for a single number; for a guided batch (2, N) or (2, 1), where
    the first row is the unconditional half's: ``unconditional`` times the scale."""
    row = torch.tensor(scale, dtype=torch.float32).reshape(1, -1)
    return torch.cat([unconditional * row, row]) if guided else row


def scale_schedule(scale: Tensor, steps: int, start: float, end: float, off: float) -> list[Tensor]:
    """Return ``scale`` for each step, and ``off`` outside [start, end] of the run, by the rule of diffusers'
    ControlNet pipelines (``control_guidance_start``, ``control_guidance_end``)."""
    keep = [start <= i / steps and (i + 1) / steps <= end for i in range(steps)]
    return [scale if kept else torch.full_like(scale, off) for kept in keep]
