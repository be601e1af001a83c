"""The directories in the cache of the model hub's library."""

from __future__ import annotations

from pathlib import Path

_SNAPSHOTS, _SEPARATOR = "snapshots", 2 * "-"


def name_of(directory: Path) -> str:
    """Return the name of a directory; of a repository in the cache, which is named by its commit there,
    ``owner/name``."""
    if directory.parent.name == _SNAPSHOTS:
        return "/".join(directory.parents[1].name.split(_SEPARATOR)[1:])
    return directory.name
