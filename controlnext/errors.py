"""The one error tree.

A message names arguments in backticks, by the names that the Python functions take; each user interface turns
them into its own, as the command line does into options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class ControlNeXtError(Exception):
    """Base of everything that this package raises on purpose.

    ``argument``: the argument at fault, by its Python name; None where it is not clearly one.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class InputError(ControlNeXtError):
    """What was given cannot be used: the message says what was given, what is accepted, how to mend it."""


class CheckpointError(InputError):
    """Weights that are missing, unreadable, or of another family or variant."""


class BundleError(InputError):
    """A bundle that is missing, damaged, incomplete or of a newer schema."""


class EngineError(BundleError):
    """A built engine that is missing, damaged, or not for this bundle, machine or size.

    ``problem``: what is wrong, without what helps; ``bundle``: its folder; ``build``: by name the arguments
    with which an engine that is right is built (``backend``, sizes, ``workspace`` in bytes, ...).
    """

    def __init__(
        self, problem: str, bundle: Path, build: Mapping[str, object], *, argument: str | None = None
    ) -> None:
        settings = ", ".join(f"`{name}` {value}" for name, value in build.items())
        super().__init__(f"{problem}; build one with {settings}", argument=argument)
        self.problem, self.bundle, self.build = problem, bundle, build


class MissingDependencyError(InputError):
    """A library that the request needs is not installed; the message names the pip command."""


class WorkError(ControlNeXtError):
    """The work itself failed: an export, a build, a full disk."""


class OutOfMemoryError(WorkError):
    """There is not enough memory for a run at this size.

    ``savers``: the arguments of the pipeline with which it takes less.
    """

    def __init__(self, width: int, height: int, savers: tuple[str, ...], reason: str) -> None:
        changes = ", ".join(f"`{name}`" for name in ("height", "width", *savers))
        super().__init__(
            f"there is not enough memory for {width} x {height} pixels ({reason}); to need less, change"
            f" {changes}"
        )
        self.savers = savers


class ParityError(WorkError):
    """The engine's outputs differ from the PyTorch reference's by more than is allowed."""


@contextmanager
def blames(argument: str) -> Iterator[None]:
    """An error of the block that names no argument at fault gets this one."""
    try:
        yield
    except ControlNeXtError as error:
        error.argument = error.argument or argument
        raise
