"""Memory that a build needs no more."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path


def release_pages(path: Path) -> None:
    """Give back the memory that shows the file ``path`` to this process; what is read again comes from disk.

    The parser maps the file of a graph's weights and keeps it mapped while it builds: as much memory as the
    file is large, a third of all that a build takes. Does nothing where the system has no such maps.
    """
    if sys.platform != "linux":
        return
    library, name = ctypes.CDLL(None), os.fspath(path.resolve())
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        # a map that can be written to may hold what is not in the file
        if len(fields) == 6 and fields[5] == name and "w" not in fields[1]:
            start, end = (int(number, 16) for number in fields[0].split("-"))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
