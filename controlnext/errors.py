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


class ParityError(WorkError):
    """The engine's outputs differ from the PyTorch reference's by more than is allowed."""
