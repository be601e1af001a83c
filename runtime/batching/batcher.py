"""The batcher: many requests of one pipeline at once."""

from __future__ import annotations

import atexit
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, current_thread
from types import TracebackType
from typing import Any, Self

from controlnext.closeable import Closeable
from controlnext.errors import ControlNeXtError, InputError, QueueFullError
from controlnext.runtime.batching.observer import Observer, Phase
from controlnext.runtime.batching.worker import Worker
from controlnext.runtime.denoise import Denoising, Rounds, Step
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.request import CommonRequest, check_least

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """A request, its future, and when its current phase began."""

    request: CommonRequest
    on_step: Callable[[Step], None] | None
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)

    def phase(self) -> float:
        """Return the seconds since the last call."""
        before, self.since = self.since, time.perf_counter()
        return self.since - before


class Batcher(Closeable):
    """Runs many requests of one pipeline at once, batched at the granularity of a denoising step.

    Requests are admitted between two rounds. In a round each takes one step; those of the same size share
    runs of the denoiser, whatever their samplers, steps, guidance, seeds and controls. Text encoders and the
    control's prologue run once a request, in a thread beside that of the rounds, and the decoder in another,
    so that they do not hold up the steps of others. Results are those of the pipeline alone but for rounding
    (docs/serving.md has figures). Leaving its block finishes what was submitted.

    Args:
        pipe: the pipeline; closing the batcher does not close it.
        max_rows: the most rows in a run of the denoiser (a guided image has two), and the most requests that
            are encoded, denoised or decoded at once. A request with more rows takes several runs for a step.
            An engine that was built for fewer rows limits it too.
        max_waiting: the most requests that wait besides.
        observer: is told of runs and of requests.

    Raises:
        InputError: ``max_rows`` or ``max_waiting`` is not an integer in its range.
    """

    def __init__(
        self, pipe: Pipeline, *, max_rows: int = 8, max_waiting: int = 64, observer: Observer | None = None
    ) -> None:
        check_least("max_rows", max_rows, 1)
        check_least("max_waiting", max_waiting, 0)
        self.pipe, self._max_rows, self._max_waiting = pipe, max_rows, max_waiting
        self._observer = observer or Observer()
        # guards everything below; told of what may change what there is to do
        self._changed = Condition()
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._ready: dict[Denoising, _Job] = {}
        self._closed = False
        self._encoder, self._decoder = Worker("encode"), Worker("decode")
        self._denoiser = Worker("denoise")
        self._denoiser.submit(self._take_rounds)
        # an interpreter that ends under a running engine is aborted
        atexit.register(self._end)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a place among those that run."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of requests that are encoded, denoised or decoded."""
        return len(self._running)

    @property
    def full(self) -> bool:
        """Whether a request that was submitted now would be refused."""
        return len(self._running) >= self._max_rows and len(self._waiting) >= self._max_waiting

    def submit(
        self, *arguments: Any, on_step: Callable[[Step], None] | None = None, **options: Any
    ) -> Future[Any]:
        """Return a future of what ``pipe(*arguments, **options)`` returns or raises.

        Its ``cancel`` works until it is done, and takes effect within a step. ``on_step`` is called after
        each step of the request, in the thread of the rounds: it has to return at once, and so have callbacks
        of the future. If it raises, the request fails with that error. The arguments are read later, in
        another thread: do not change arrays or images before the future is done.

        Raises:
            QueueFullError: ``max_waiting`` requests wait already.
            InputError: the batcher is closed.
            TypeError: an argument that the pipeline does not have.
        """
        try:
            job = _Job(self.pipe.request(*arguments, **options), on_step)
        except ControlNeXtError as error:
            refused: Future[Any] = Future()
            refused.set_exception(error)
            return refused
        with self._changed:
            self._check_open()
            self._forget_cancelled()
            if self.full:
                raise QueueFullError(len(self._waiting))
            self._waiting.append(job)
            self._admit()
        job.future.add_done_callback(self._wake)
        return job.future

    def close(self, *, cancel: bool = False) -> None:
        """Finish, or with ``cancel`` cancel, what was submitted, and stop the threads; no more is taken.

        Returns when that is done; at once if it is called from a callback, in one of these threads.
        """
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *self._running] if cancel else []
        for job in jobs:
            job.future.cancel()
        with self._changed:
            self._changed.notify_all()
            workers = (self._encoder, self._denoiser, self._decoder)
            if current_thread() in [worker.thread for worker in workers]:
                return
            self._changed.wait_for(lambda: not self._waiting and not self._running)
        for worker in workers:
            worker.stop()
        atexit.unregister(self._end)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the batcher is closed; make another")

    def _end(self) -> None:
        self.close(cancel=True)

    def _wake(self, _future: Future[Any]) -> None:
        with self._changed:
            self._forget_cancelled()
            self._changed.notify_all()

    def _forget_cancelled(self) -> None:
        """Take those out of the queue that were cancelled there."""
        for job in [job for job in self._waiting if job.future.cancelled()]:
            self._waiting.remove(job)
            _acknowledge(job.future)

    def _admit(self) -> None:
        """Start to encode what waits, in its order, while there are places."""
        while self._waiting and len(self._running) < self._max_rows:
            job = self._waiting.popleft()
            self._running.add(job)
            self._encoder.submit(self._encode, job)

    def _encode(self, job: _Job) -> None:
        self._observer.spent(Phase.WAITING, job.phase())
        self._begin(job, partial(self.pipe.start, job.request))

    def _begin(self, job: _Job, start: Callable[[], Denoising]) -> None:
        if job.future.cancelled():
            self._leave(job)
            return
        try:
            run = start()
        except Exception as error:
            self._leave(job, error)
            return
        self._observer.spent(Phase.ENCODING, job.phase())
        with self._changed:
            self._ready[run] = job
            self._changed.notify_all()

    def _take_rounds(self) -> None:
        """Take rounds while there are requests; the batcher's own thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or (self._closed and not self._running))
                if not self._ready:
                    return
                first = next(iter(self._ready))
            # new ones after a pause, so that none of the last runs is kept
            rounds = Rounds(self._most_rows(first), self._observer.ran)
            del first
            while self._take_round(rounds):
                pass

    def _take_round(self, rounds: Rounds) -> bool:
        """Take one step of each run that is ready; return False if there was none."""
        with self._changed:
            runs = list(self._ready)
        try:
            for run, outcome in rounds.take(runs, self._dropped):
                self._went(run, outcome)
            for run in filter(self._dropped, runs):
                self._leave(self._ready[run], run=run)
        except Exception as error:  # a bug: no request may wait for ever
            for run in [run for run in runs if run in self._ready]:
                self._leave(self._ready[run], error, run)
        return bool(runs)

    def _most_rows(self, run: Denoising) -> int:
        limit = run.parts[0].bound.engine.most_rows
        return self._max_rows if limit is None else min(self._max_rows, limit)

    def _dropped(self, run: Denoising) -> bool:
        job = self._ready.get(run)
        return job is not None and job.future.cancelled()

    def _went(self, run: Denoising, outcome: Step | Exception) -> None:
        """Tell of a step that was taken, and pass the run on after the last one."""
        job = self._ready[run]
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if job.on_step is not None and not job.future.cancelled():
                job.on_step(outcome)
        except BaseException as error:  # an exit that on_step asks for must not end the thread of all
            self._leave(job, error, run)
            return
        if run.done:
            self._observer.spent(Phase.DENOISING, job.phase())
            with self._changed:
                del self._ready[run]
            if run.then is None:
                self._decoder.submit(self._decode, job, run)
            else:
                self._encoder.submit(self._go_on, job, run)

    def _go_on(self, job: _Job, run: Denoising) -> None:
        """Begin the run that follows one that is done."""
        assert run.then is not None
        self._begin(job, partial(run.then, run.latents))

    def _decode(self, job: _Job, run: Denoising) -> None:
        if job.future.cancelled():
            self._leave(job)
            return
        try:
            result = self.pipe.finish(job.request, run.latents)
        except Exception as error:
            self._leave(job, error)
            return
        self._observer.spent(Phase.DECODING, job.phase())
        self._leave(job, result=result)

    def _leave(
        self, job: _Job, error: BaseException | None = None, run: Denoising | None = None, result: Any = None
    ) -> None:
        """Give the place of a request to the next one, then complete its future."""
        with self._changed:
            if run is not None:
                del self._ready[run]
            self._running.discard(job)
            self._admit()
            self._changed.notify_all()
        if error is not None and not isinstance(error, ControlNeXtError):
            logger.error("a request failed", exc_info=error)
        try:
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        except InvalidStateError:
            _acknowledge(job.future)


def _acknowledge(future: Future[Any]) -> None:
    """Tell those who wait for a cancelled future."""
    if future.cancelled():
        future.set_running_or_notify_cancel()
