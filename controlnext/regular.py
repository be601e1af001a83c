"""Files that a name from outside leads to: only regular ones are opened."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def check_regular(path: Path) -> Path:
    """Return ``path``; raise :class:`OSError` for a pipe, a device or a socket.

    Opening a pipe waits for its writer, and some devices never end. Other problems are told by opening it.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return path
