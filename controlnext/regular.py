"""Files that a name from outside leads to: only regular ones are opened."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

MOST_SMALL = 64 << 20
"""Bytes of the largest file that :func:`read_small` reads."""


def read_small(path: Path) -> bytes:
    """Return the content of a file that lists or sets something; raise :class:`OSError` where it is missing,
    none, or larger than any such file is."""
    return check_regular(path, MOST_SMALL).read_bytes()


def check_regular(path: Path, most_bytes: int | None = None) -> Path:
    """Return ``path``; raise :class:`OSError` for a pipe, a device or a socket, and for a file of more than
    ``most_bytes``.

    Opening a pipe waits for its writer, and some devices never end. Other problems are told by opening it.
    """
    found = path.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    if most_bytes is not None and found.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes} bytes", str(path))
    return path
