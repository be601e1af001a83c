"""The batches of the denoiser in a step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from controlnext.engines import BoundEngine


@dataclass(frozen=True)
class StepPart:
    """A batch of the denoiser in every step of a run: all of the step, or a window of a long clip.

    Parts of the same ``key`` have the same sizes but for the batch, so that they can share a run.
    """

    bound: BoundEngine
    key: Hashable

    @property
    def rows(self) -> int:
        """The number of rows, which the bound inputs tell."""
        assert self.bound.rows is not None
        return self.bound.rows


def conditional_parts(parts: Sequence[StepPart]) -> list[StepPart]:
    """Return guided parts without their unconditional halves; those that shared a bound engine still do."""
    halves = {part.bound: part.bound.last_rows(part.rows // 2) for part in parts}
    return [replace(part, bound=halves[part.bound]) for part in parts]
