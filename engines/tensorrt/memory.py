"""Free memory that a build does not need."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

_SECONDS = 0.5


@contextmanager
def released_pages(path: Path) -> Iterator[None]:
    """Release, during the block, the memory that maps of the file ``path`` take in this process.

    The parser maps the file of a graph's weights for the whole build: a third of the memory of a build. Pages
    that are read again come from disk. Does nothing on systems other than Linux.
    """
    if sys.platform != "linux":
        yield
        return
    over = Event()

    def release() -> None:
        while not over.wait(_SECONDS):
            _release(path)

    thread = Thread(target=release, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _release(path: Path) -> None:
    library, name = ctypes.CDLL(None), os.fspath(path.resolve())
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        # a map that can be written to may hold what is not in the file
        if len(fields) == 6 and fields[5] == name and "w" not in fields[1]:
            start, end = (int(number, 16) for number in fields[0].split("-"))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
