"""Rows of several bound engines, run as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controlnext.engines.base import BoundEngine
from controlnext.types import Feed


@dataclass(frozen=True)
class EngineRows:
    """The rows ``start`` to ``stop`` of the batch of a bound engine."""

    bound: BoundEngine
    start: int
    stop: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return these rows of an input; one row counts for all of them, as a control image may."""
        if len(array) == 1 != self.bound.rows:
            return np.broadcast_to(array, (self.stop - self.start, *array.shape[1:]))
        return array[self.start : self.stop]


class JointBatch:
    """Rows of bound engines of one graph that have the same sizes but for the batch; run as one batch.

    What the engines have bound is joined in the first run, and stays from run to run.
    """

    def __init__(self, members: Sequence[EngineRows]) -> None:
        self._members = tuple(members)
        self._engine = members[0].bound.engine
        self._constants: dict[str, np.ndarray] | None = None

    def run(self, feeds: Sequence[Feed]) -> list[dict[str, np.ndarray]]:
        """Return the outputs of each member's rows.

        ``feeds``: for each member what :meth:`~controlnext.engines.BoundEngine.run` takes, with all rows.
        A single member with all of its rows runs as that does, to the last bit. Raises as that does.
        """
        first = self._members[0]
        if len(self._members) == 1 and first.stop - first.start == first.bound.rows:
            return [first.bound.run(feeds[0])]
        given = [member.bound.arguments(feed) for member, feed in zip(self._members, feeds, strict=True)]
        if self._constants is None:
            self._constants = self._joined([constants for constants, _ in given])
        changing = self._joined([changing for _, changing in given])
        outputs = self._engine.run_bound(self, {**self._constants, **changing}, changing.keys())
        return self._split(outputs)

    def _joined(self, feeds: Sequence[Feed]) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate(
                [rows.of(feed[name]) for rows, feed in zip(self._members, feeds, strict=True)]
            )
            for name in feeds[0]
            if name in self._engine.step_inputs
        }

    def _split(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        stops = np.cumsum([member.stop - member.start for member in self._members])
        parts = {name: np.split(array, stops[:-1]) for name, array in outputs.items()}
        return [{name: rows[i] for name, rows in parts.items()} for i in range(len(self._members))]
