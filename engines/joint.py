"""Rows of several bound engines, run as one batch."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controlnext.engines.base import BoundEngine
from controlnext.engines.steps import StepKind
from controlnext.tensor_spec import LORA_INPUTS
from controlnext.types import Feed


@dataclass(frozen=True)
class EngineRows:
    """The rows ``start`` to ``stop`` of the batch of a bound engine."""

    bound: BoundEngine
    start: int
    stop: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return these rows of an input; one row counts for all of them, as a control image may.

        A feature of a clip has one for each frame.
        """
        if len(array) == 1 != self.bound.rows:
            return np.broadcast_to(array, (self.stop - self.start, *array.shape[1:]))
        each = len(array) // (self.bound.rows or len(array))
        return array[self.start * each : self.stop * each]


class JointBatch:
    """Rows of bound engines of one graph that have the same sizes but for the batch; run as one batch.

    What the engines have bound is joined in the first run, and stays from run to run.
    """

    def __init__(self, members: Sequence[EngineRows]) -> None:
        self._members = tuple(members)
        self._engine = members[0].bound.engine
        self._constants: dict[str, np.ndarray] | None = None
        self._taken: tuple[Feed, ...] = ()
        self._features: dict[str, np.ndarray] = {}

    def run(
        self, feeds: Sequence[Feed], kind: StepKind = StepKind.PLAIN, features: Sequence[Feed] = ()
    ) -> list[dict[str, np.ndarray]]:
        """Return the outputs of each member's rows.

        ``feeds``, and ``features`` of a shallow step: for each member what
        :meth:`~controlnext.engines.BoundEngine.run` takes, with all rows. A single member with all of its
        rows runs as that does, to the last bit. Raises as that does.
        """
        first = self._members[0]
        if len(self._members) == 1 and first.stop - first.start == first.bound.rows:
            return [first.bound.run(feeds[0], kind, *features)]
        pairs = zip(self._members, feeds, strict=True)
        given = [member.bound.arguments(feed, kind) for member, feed in pairs]
        if self._constants is None:
            self._constants = self._joined([constants for constants, _ in given], self._engine.step_inputs)
        changing = self._joined([changing for _, changing in given], self._engine.step_inputs)
        new = self._take(features)
        outputs = self._engine.run_bound(
            self, {**self._constants, **changing, **self._features}, changing.keys() | new, kind
        )
        return self._split(outputs)

    def _take(self, features: Sequence[Feed]) -> Collection[str]:
        """Join the features, unless they are those of the last run; return the names of new ones."""
        same = len(features) == len(self._taken) and all(map(operator.is_, features, self._taken))
        if not same:
            self._taken = tuple(features)
            self._features = self._joined(features, features[0].keys()) if features else {}
        return () if same else self._features.keys()

    def _joined(self, feeds: Sequence[Feed], names: Collection[str]) -> dict[str, np.ndarray]:
        return {
            name: (self._joined_loras if name in LORA_INPUTS else self._joined_rows)(
                [feed[name] for feed in feeds]
            )
            for name in feeds[0]
            if name in names
        }

    def _joined_rows(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([rows.of(array) for rows, array in zip(self._members, arrays, strict=True)])

    def _joined_loras(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Join matrices of LoRAs, those of a smaller rank with zeros below; rows that all have the same share
        them."""
        first = arrays[0]
        if len(first) == 1 and all(array is first for array in arrays):
            return first
        rank = max(array.shape[1] for array in arrays)
        return self._joined_rows(
            [np.pad(array, ((0, 0), (0, rank - array.shape[1]), (0, 0))) for array in arrays]
        )

    def _split(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        stops = np.cumsum([member.stop - member.start for member in self._members])
        parts = {
            name: np.split(array, stops[:-1] * (len(array) // stops[-1])) for name, array in outputs.items()
        }
        return [{name: rows[i] for name, rows in parts.items()} for i in range(len(self._members))]
