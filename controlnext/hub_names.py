"""Names of repositories at the model hub, as they are given and as they stand in its library's cache."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from controlnext.errors import CheckpointError

# owner/name, a revision (of which only those under refs/ have a slash that is not written %2F), a path inside
_HUB_ID = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@(refs/\w+/[\w.-]+|[\w.%+-]+))?((?:/[\w.-]+)*)")
_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
_SNAPSHOTS, _SEPARATOR = "snapshots", 2 * "-"


def is_repository(text: str) -> bool:
    """Return whether a text could be the name of a repository, ``owner/name``."""
    return _REPOSITORY.fullmatch(text) is not None


def split_hub_id(given: str | Path) -> tuple[str, str | None, str]:
    """Return repository, revision and directory or file of a hub id,
    ``owner/name[@revision][/directory or file]``; raise :class:`CheckpointError` for text that is none."""
    match = _HUB_ID.fullmatch(str(given))
    if not match:
        raise CheckpointError(
            f"{given}: no such file or directory, and not a hub id"
            " (owner/name[@revision][/directory or file])"
        )
    return match[1], unquote(match[2] or "") or None, match[3].strip("/")


def name_of(directory: Path) -> str:
    """Return the name of a directory; of a repository in the cache, which is named by its commit there,
    ``owner/name``."""
    if directory.parent.name == _SNAPSHOTS:
        return "/".join(directory.parents[1].name.split(_SEPARATOR)[1:])
    return directory.name
