"""The bundles that a command works on, copied to this machine if they lie elsewhere."""

from __future__ import annotations

from pathlib import Path

from controlnext.bundle.remote import is_remote, local_copy
from controlnext.cli.console import progress
from controlnext.errors import InputError


def fetch_bundle(location: str | Path, *, quiet: bool = False) -> Path:
    """Return the directory of a bundle; shows a progress bar while it is copied, unless ``quiet``.

    Raises as :func:`controlnext.bundle.remote.local_copy`.
    """
    if not str(location):
        raise InputError("bundle is empty; give the path of a directory", argument="bundle")
    if not is_remote(location):
        return Path(location)
    with progress(quiet) as report:
        return local_copy(location, report=report)


def shared_location(location: str) -> str:
    """Return a bundle's location as processes elsewhere understand it: a path from the root on."""
    return location if is_remote(location) else str(Path(location).resolve())
