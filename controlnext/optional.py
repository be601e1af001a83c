"""Errors for libraries of an optional extra that are not installed; they name the pip command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from controlnext.errors import MissingDependencyError


@contextmanager
def extra(name: str, title: str = "", *, otherwise: str = "") -> Iterator[None]:
    """Translate a failed import in this block into an error that names the extra ``name``.

    ``title``: name of the library, if only one is imported; ``otherwise``: the extra for other machines.
    Raises :class:`~controlnext.errors.MissingDependencyError` where a library is not installed, or,
    if it has a title, cannot be loaded.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if not title and (not isinstance(error, ModuleNotFoundError) or library in ("", "controlnext")):
            raise
        packages = f'"controlnext[{name}]"' + (f", or {otherwise}" if otherwise else "")
        missing = f"{title} is not installed" if title else f"this needs {library}, which is not installed"
        raise not_installed(missing, f"{packages} ({error})" if title else packages) from error


def not_installed(missing: str, packages: str) -> MissingDependencyError:
    """Return an error with the message ``missing`` and the command that installs ``packages``."""
    return MissingDependencyError(f"{missing}; run pip install {packages}")


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ValueError:  # a loaded module without a spec
        return True
