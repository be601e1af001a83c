"""The one error tree. The command line turns an error into one line and its exit status."""

from __future__ import annotations


class ControlNeXtError(Exception):
    """Base of everything that this package raises on purpose."""

    exit_status = 1


class InputError(ControlNeXtError):
    """What was given cannot be used: the message says what was given, what is accepted, how to mend it."""

    exit_status = 2


class CheckpointError(InputError):
    """Weights that are missing, unreadable, or of another family or variant."""


class BundleError(InputError):
    """A bundle that is missing, damaged, incomplete or of a newer schema."""


class MissingDependencyError(InputError):
    """A library that the request needs is not installed; the message names the pip command."""


class WorkError(ControlNeXtError):
    """The work itself failed: an export, a build, a full disk."""


class OutOfMemoryError(WorkError):
    """There is not enough memory for a run at this size.

    ``savers``: the arguments of the pipeline with which it takes less.
    """

    def __init__(self, width: int, height: int, savers: tuple[str, ...], reason: str) -> None:
        super().__init__(
            f"there is not enough memory for {width} x {height} pixels ({reason}); less is needed with a"
            f" smaller height and width, or with {', '.join(savers)}"
        )
        self.savers = savers


class ParityError(WorkError):
    """The engine's outputs differ from the PyTorch reference's by more than is allowed."""
