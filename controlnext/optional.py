"""Libraries of an optional extra: a missing one is an error that names the pip command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from controlnext.errors import MissingDependencyError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports in this block need the extra ``name``; raises :class:`MissingDependencyError` without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "controlnext"):
            raise
        raise MissingDependencyError(
            f'this needs {library}, which is not installed; pip install "controlnext[{name}]"'
        ) from error
