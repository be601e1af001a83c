"""Libraries of an optional extra: a missing one is an error that names the pip command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from controlnext.errors import MissingDependencyError


@contextmanager
def extra(name: str, title: str = "", *, otherwise: str = "") -> Iterator[None]:
    """Imports in this block need the extra ``name``.

    ``title``: of the one library that is imported; ``otherwise``: the extra that suits other machines, and
    which. Raises :class:`~controlnext.errors.MissingDependencyError` where a library is not installed, or,
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
    """The error that ``missing`` tells, with the command that installs ``packages``."""
    return MissingDependencyError(f"{missing}; run pip install {packages}")


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # it was loaded without saying from where
        return True
