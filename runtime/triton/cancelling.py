"""Noticing that nobody waits for a request any more."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any

from controlnext.closeable import Closeable

_PAUSE = 0.05
"""Seconds between two looks: Triton has to be asked, it does not tell."""


class CancelWatch(Closeable):
    """A thread that cancels the futures of requests that were cancelled, wherever they wait or run."""

    def __init__(self) -> None:
        # guards what follows; told when there is something to watch, or nothing ever again
        self._changed = Condition()
        self._watched: dict[Future[Any], Callable[[], bool]] = {}
        self._closed = False
        self._thread = Thread(target=self._run, name="cancel", daemon=True)
        self._thread.start()

    def add(self, future: Future[Any], is_cancelled: Callable[[], bool]) -> None:
        """Cancel ``future`` once ``is_cancelled`` is true, unless it is done."""
        with self._changed:
            self._watched[future] = is_cancelled
            self._changed.notify_all()
        future.add_done_callback(self._forget)

    def close(self) -> None:
        """Stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _forget(self, future: Future[Any]) -> None:
        with self._changed:
            del self._watched[future]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watched or self._closed)
                self._changed.wait_for(lambda: self._closed, _PAUSE)
                if self._closed:
                    return
                watched = list(self._watched.items())
            for future, is_cancelled in watched:
                if is_cancelled():
                    future.cancel()
            # no request is kept during a pause
            watched.clear()
