"""The denoising loop: rounds in which each run takes one step and shares a batch with others if it can."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controlnext.engines import BoundEngine
from controlnext.engines.joint import EngineRows, JointBatch
from controlnext.engines.steps import StepKind
from controlnext.errors import WorkError
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.samplers import Sampler
from controlnext.runtime.step_cache import conditional_rows, join_rows, step_kind
from controlnext.types import Feed, FloatArray


@dataclass(frozen=True)
class Step:
    """The state after a denoising step: ``index`` of ``total``, counted from 0.

    ``latents`` is (N, C, h, w) float32, for a clip (1, frames, C, h, w). The loop goes on using the array:
    copy it before you change it.
    """

    index: int
    total: int
    timestep: float
    latents: FloatArray


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


@dataclass(eq=False, kw_only=True)
class Denoising(ABC):
    """A request while it is denoised.

    Attributes:
        sampler: the sampler, which serves this run alone and begins at a step of its own.
        latents: the sample before the first step; from then on the state after the last step.
        generator: the source of the noise that some samplers add.
        parts: the batches of a step; of the conditional rows alone once guidance has ended.
        guided_steps: the number of steps with guidance, 0 for a run without.
        guard: reports running out of memory.
        cache_interval: every step of which the index is a multiple is full, those between are shallow.
        index: number of the next step, counted from 0.
        features: what the last full step computed for shallow ones, of each part, for all of its rows.
        earlier, later: the numbers of steps of the runs before and after this one in the same call.
        then: makes the run that follows, once this one is done.
    """

    sampler: Sampler
    latents: FloatArray
    generator: TorchGenerator
    parts: Sequence[StepPart]
    guided_steps: int
    guard: MemoryGuard
    cache_interval: int = 1
    earlier: int = 0
    later: int = 0
    then: Callable[[FloatArray], Denoising] | None = None
    index: int = field(default=0, init=False)
    features: list[Feed] = field(default_factory=list, init=False)
    _scaled: FloatArray | None = field(default=None, init=False)

    @property
    def total(self) -> int:
        """The number of steps."""
        return len(self.sampler.timesteps) - self.sampler.begin

    @property
    def place(self) -> int:
        """The index of the next step in the sampler's schedule."""
        return self.sampler.begin + self.index

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.index == self.total

    @property
    def kind(self) -> StepKind:
        """The kind of the next step."""
        return step_kind(self.index, self.total, self.cache_interval)

    @property
    def shallow(self) -> bool:
        """Whether the next step is shallow."""
        return self.index % self.cache_interval > 0

    @property
    def timestep(self) -> float:
        """The timestep of the next step."""
        return float(self.sampler.timesteps[self.place])

    def inputs(self, number: int) -> Feed:
        """Return the inputs that are not bound of part ``number`` in the next step."""
        if self._scaled is None:
            self._scaled = self.sampler.scale_model_input(self.latents, self.place)
        return self._inputs(number, self._scaled)

    @abstractmethod
    def _inputs(self, number: int, sample: FloatArray) -> Feed:
        """Return the inputs of a part for the whole ``sample``, which is scaled."""

    @abstractmethod
    def _guided(self, predictions: Sequence[FloatArray]) -> FloatArray:
        """Return the noise in the sample from what the denoiser predicts for each part."""

    @np.errstate(all="ignore")  # what is not finite is refused: here, in the next step or by the VAE
    def advance(self, predictions: Sequence[FloatArray]) -> Step:
        """Take the next step with what the denoiser predicts for each part; raise :class:`WorkError` unless
        that is finite."""
        index, timestep, noise = self.index, self.timestep, self._guided(predictions)
        if not np.isfinite(noise).all():
            raise WorkError(
                f"the denoiser's output at step {index + 1} of {self.total} is not finite: it overflows with"
                " these weights and scales; export with `precision` fp32, or use smaller scales"
            )
        self.latents = self._kept(self.sampler.step(noise, self.place, self.latents, self.generator))
        self.index, self._scaled = self.index + 1, None
        if self.index == self.guided_steps and not self.done:
            self.parts = _conditional(self.parts)
            self.features = [conditional_rows(features) for features in self.features]
        return Step(self.earlier + index, self.earlier + self.total + self.later, timestep, self.latents)

    def _kept(self, latents: FloatArray) -> FloatArray:
        """Return the sample after a step, with the part that the run keeps of its image."""
        return latents


@dataclass(frozen=True)
class _Rows:
    """The rows ``start`` to ``stop`` of a part of a run, its ``number``."""

    run: Denoising
    number: int
    part: StepPart
    start: int
    stop: int


_Batch = tuple[_Rows, ...]
Outcome = Step | Exception


class Rounds:
    """Rounds of denoising: in each, every run takes one step.

    A run of the denoiser has up to ``most_rows`` rows; without that number runs share nothing. ``observe`` is
    told of each run of the denoiser: the number of requests and of rows in it, and its seconds.
    """

    def __init__(
        self,
        most_rows: int | None = None,
        observe: Callable[[int, int, float], None] = lambda _requests, _rows, _seconds: None,
    ) -> None:
        self._most_rows, self._observe = most_rows, observe
        self._packed: list[tuple[Denoising, bool, Sequence[StepPart]]] = []
        self._batches: list[_Batch] = []
        self._joint: dict[_Batch, JointBatch] = {}

    def take(
        self, runs: list[Denoising], dropped: Callable[[Denoising], bool] = lambda _run: False
    ) -> Iterator[tuple[Denoising, Outcome]]:
        """Take one step of each of the ``runs``; yield its outcome as soon as it is taken.

        An error is the outcome of the run that it belongs to, the others go on. ``dropped`` tells which runs
        are no longer wanted; these have no outcome.
        """
        self._repack(runs)
        predicted: dict[Denoising, list[list[Feed]]] = {run: [[] for _ in run.parts] for run in runs}
        for batch in self._batches:
            rows = tuple(one for one in batch if one.run in predicted and not dropped(one.run))
            for one, prediction in zip(rows, self._predict(rows), strict=True):
                if isinstance(prediction, Exception):
                    del predicted[one.run]
                    yield one.run, prediction
                    continue
                predicted[one.run][one.number].append(prediction)
                if one.stop == one.part.rows and one.number == len(one.run.parts) - 1:
                    yield one.run, _advance(one.run, predicted.pop(one.run))

    def _repack(self, runs: Sequence[Denoising]) -> None:
        """Put the rows of the next steps into batches: full steps and shallow ones do not share any."""
        packed = [(run, run.shallow, run.parts) for run in runs]
        if packed == self._packed:
            return
        latest = self._batches if [run for run, *_ in packed] == [run for run, *_ in self._packed] else []
        self._packed, self._batches = packed, _pack(runs, self._most_rows)
        # the batches before these soon return, unless runs came or went
        wanted = dict.fromkeys((*self._batches, *latest))
        self._joint = {batch: self._joint.get(batch) or _joint(batch) for batch in wanted}

    def _predict(self, batch: _Batch) -> list[Feed | Exception]:
        """Return the denoiser's outputs for each of the rows, or the error."""
        if not batch:
            return []
        begin = time.perf_counter()
        kinds = {rows.run.kind for rows in batch}
        kind = StepKind.FULL if len(kinds) > 1 else kinds.pop()
        try:
            with batch[0].run.guard.watch():
                feeds = [rows.run.inputs(rows.number) for rows in batch]
                features = [rows.run.features[rows.number] for rows in batch if rows.run.shallow]
                outputs = (self._joint.get(batch) or _joint(batch)).run(feeds, kind, features)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            # alone, so that only those fail that have to
            return [result for rows in batch for result in self._predict((rows,))]
        count = sum(rows.stop - rows.start for rows in batch)
        self._observe(len(batch), count, time.perf_counter() - begin)
        return list(outputs)


def denoise(run: Denoising) -> Iterator[Step]:
    """Yield the steps of a single run, and of those that follow it; raise its error."""
    rounds = Rounds(run.parts[0].bound.engine.most_rows)
    while not run.done:
        for _, outcome in rounds.take([run]):
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
    if run.then is not None:
        yield from denoise(run.then(run.latents))


def _pack(runs: Sequence[Denoising], most_rows: int | None) -> list[_Batch]:
    """Return all rows of one step of the ``runs`` in batches of one key: each in the first with room.

    Rows of one run are in batches of their own, in their order, and need no more memory than a run alone.
    """
    batches: list[list[_Rows]] = []
    for run in runs:
        first = 0
        for number, part in enumerate(run.parts):
            count = part.rows
            most = most_rows or count
            for start in range(0, count, most):
                rows = _Rows(run, number, part, start, min(start + most, count))
                place = next(
                    (i for i in range(first, len(batches)) if _fits(rows, batches[i], most_rows)), None
                )
                if place is None:
                    place = len(batches)
                    batches.append([])
                batches[place].append(rows)
                first = place + 1
    return [tuple(batch) for batch in batches]


def _fits(rows: _Rows, batch: Sequence[_Rows], most_rows: int | None) -> bool:
    if most_rows is None or batch[0].part.key != rows.part.key or batch[0].run.shallow != rows.run.shallow:
        return False
    return sum(one.stop - one.start for one in (*batch, rows)) <= most_rows


def _joint(batch: _Batch) -> JointBatch:
    return JointBatch([EngineRows(rows.part.bound, rows.start, rows.stop) for rows in batch])


def _advance(run: Denoising, outputs: Sequence[Sequence[Feed]]) -> Outcome:
    """Take the next step of a run with the denoiser's outputs for the rows of each part."""
    try:
        whole = [join_rows(rows) for rows in outputs]
        predictions = [part.pop("noise_pred") for part in whole]
        if run.kind is StepKind.FULL:
            run.features = list(whole)
        return run.advance(predictions)
    except Exception as error:
        return error


def _conditional(parts: Sequence[StepPart]) -> list[StepPart]:
    """Return guided parts without their unconditional halves; those that shared a bound engine still do."""
    halves = {part.bound: part.bound.last_rows(part.rows // 2) for part in parts}
    return [replace(part, bound=halves[part.bound]) for part in parts]
