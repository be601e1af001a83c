"""The end of guidance within a run: from then on only the conditional half of the batch is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from controlnext.reference.stock import LatentsKeeper


class CutOff(LatentsKeeper):
    """A pipeline's ``callback_on_step_end`` that ends guidance at ``end`` (0 to 1) of a guided run.

    For image pipelines it does what diffusers documents as dynamic classifier-free guidance: after step
    ``int(steps * end)``, counted from 0, the guidance scale is 0 and the embeddings are their second half.
    """

    def __init__(self, end: float, steps: int) -> None:
        self.steps, self._last = steps, int(steps * end)

    @staticmethod
    def tensors(pipeline: Any) -> list[str]:
        """Return the names of the tensors that the callback asks the pipeline for."""
        return [name for name in pipeline._callback_tensor_inputs if not name.startswith("negative_")]

    def guided(self, step: int) -> bool:
        """Return whether a step is guided; it is counted from 0."""
        return step <= self._last

    def conditional(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows of each step, of which the first is the unconditional half's if there are two."""
        return [row if self.guided(step) else row[-1:] for step, row in enumerate(rows)]

    def __call__(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> Any:
        kept = super().__call__(pipeline, index, timestep, tensors)
        if index != self._last:
            return kept
        pipeline._guidance_scale = 0.0
        return {name: kept[name] if name == "latents" else kept[name].chunk(2)[-1] for name in kept}


@contextmanager
def conditional_alone(denoiser: nn.Module, cut_off: CutOff) -> Iterator[None]:
    """Have a pipeline without such a callback compute the conditional half alone after the cut-off.

    The unconditional half gets the same noise, which leaves nothing to guide. Each call of ``denoiser`` is
    the next step.
    """
    whole, step = denoiser.forward, -1

    def half(value: Any, rows: int) -> Any:
        if isinstance(value, dict):
            return {name: half(entry, rows) for name, entry in value.items()}
        batch = isinstance(value, Tensor) and value.ndim and len(value) == rows
        return value.chunk(2)[-1] if batch else value

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        nonlocal step
        step += 1
        if cut_off.guided(step):
            return whole(*args, **kwargs)
        # the sample is the first argument
        rows = len(args[0] if args else next(iter(kwargs.values())))
        noise = whole(*(half(value, rows) for value in args), **half(kwargs, rows))[0]
        return (torch.cat([noise] * 2),)

    denoiser.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        denoiser.forward = whole  # type: ignore[method-assign]
