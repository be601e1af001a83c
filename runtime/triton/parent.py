"""Ending with the server."""

from __future__ import annotations

import os
from threading import Event, Thread

from controlnext.closeable import Closeable

_PAUSE = 1.0
"""Seconds between two looks."""


class ParentWatch(Closeable):
    """A thread that ends this process once its parent has ended.

    A server that is killed, or whose time to exit is over, leaves its models' processes behind with threads
    that wait in its shared memory for ever, and with them the memory of the engines.
    """

    def __init__(self) -> None:
        self._closed, self._parent = Event(), os.getppid()
        Thread(target=self._run, name="parent", daemon=True).start()

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_PAUSE):
            if os.getppid() != self._parent:
                # an orderly end would wait for those threads
                os._exit(1)
