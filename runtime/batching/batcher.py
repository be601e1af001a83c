"""The batcher."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from queue import Queue
from threading import Lock, Thread
from typing import Any

from controlnext.closeable import Closeable
from controlnext.errors import ControlNeXtError, QueueFullError
from controlnext.runtime.batching.observer import Observer
from controlnext.runtime.denoise import Step
from controlnext.runtime.pipelines.base import Pipeline


class Batcher(Closeable):
    """INTERIM: one request at a time."""

    def __init__(
        self, pipe: Pipeline, *, max_rows: int = 8, max_waiting: int = 64, observer: Observer | None = None
    ) -> None:
        self.pipe, self._most = pipe, max_waiting
        self._observer = observer or Observer()
        self._queue: Queue[Any] = Queue()
        self._lock, self._waiting = Lock(), 0
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a place among those that run."""
        return self._waiting

    @property
    def running(self) -> int:
        """The number of requests that are encoded, denoised or decoded."""
        return 0

    def submit(self, *args: Any, on_step: Callable[[Step], None] | None = None, **options: Any) -> Future[Any]:
        """Return a future of what ``pipe(*args, **options)`` returns."""
        with self._lock:
            if self._waiting >= self._most:
                raise QueueFullError(self._most)
            self._waiting += 1
        future: Future[Any] = Future()
        self._queue.put((future, args, options, on_step))
        return future

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            future, args, options, on_step = item
            with self._lock:
                self._waiting -= 1
            try:
                request = self.pipe.request(*args, **options)
                for step in self.pipe.steps(request):
                    if future.cancelled():
                        break
                    if on_step:
                        on_step(step)
                if future.cancelled():
                    future.set_running_or_notify_cancel()
                    continue
                future.set_result(self.pipe(*args, **options))
            except InvalidStateError:
                pass
            except (ControlNeXtError, TypeError) as error:
                future.set_exception(error)

    def close(self, *, cancel: bool = False) -> None:
        """Finish (or with ``cancel`` cancel) what was submitted; take no more."""
        self._queue.put(None)
        self._thread.join()
