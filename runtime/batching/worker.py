"""A thread that does one thing after the other."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Worker:
    """A thread that does what it is given, in that order, until it is stopped.

    An executor of the standard library would take nothing more once the interpreter begins to exit, which is
    too early: requests are cancelled after that.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the thread call ``function``, which must not raise."""
        self._work.put((function, arguments))

    def stop(self) -> None:
        """End the thread once it has done what it was given."""
        self._work.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            function, arguments = work
            function(*arguments)
            # nothing of a request is kept until the next one
            del work, function, arguments
