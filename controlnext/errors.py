"""The tree of errors that the package raises.

A message names arguments in backticks, by the names that the Python functions have; each user interface
translates them, as the command line does into options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from controlnext.secrets import without_secrets

LONGEST = 3000
"""Number of characters of the longest message; of a longer one the middle is left out."""
_UNSEEN = re.compile("[\x00-\t\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return a text of unknown origin as it may be shown: without secrets, and with escapes in place of
    control characters, marks that turn the direction of writing, and halves of characters."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], without_secrets(text))


def one_line(text: str) -> str:
    """Return the same as :func:`visible` on one line."""
    return visible(" ".join(text.splitlines()))


def without_middle(text: str) -> str:
    """Return a text, but for the middle of one that is longer than a message may be."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} [...] {text[-half:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that has text, or the error's type if there is none."""
    return next(filter(str.strip, str(error).splitlines()), "").strip() or type(error).__name__


class ControlNeXtError(Exception):
    """Base class of the errors that this package raises. No secret that was given is in a message.

    ``argument``: the argument at fault, by its Python name; None if no single one is at fault.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(without_middle(visible(message)))
        self.argument = argument


class InputError(ControlNeXtError):
    """An input that cannot be used: the message says what was given, what is accepted, how to fix it."""


class CheckpointError(InputError):
    """Weights that are missing, unreadable, or of another family or variant."""


class BundleError(InputError):
    """A bundle that is missing, damaged, incomplete or of a newer schema."""


class EngineError(BundleError):
    """A built engine that is missing, damaged, or not for this bundle, machine or size.

    ``problem``: what is wrong, without the fix; ``bundle``: its directory; ``build``: by name the arguments
    that build a suitable engine (``backend``, sizes, ``workspace`` in bytes, ...).
    """

    def __init__(
        self, problem: str, bundle: Path, build: Mapping[str, object], *, argument: str | None = None
    ) -> None:
        settings = ", ".join(f"`{name}` {value}" for name, value in build.items())
        super().__init__(f"{problem}; build one with {settings}", argument=argument)
        self.problem, self.bundle, self.build = without_secrets(problem), bundle, build


class MissingDependencyError(InputError):
    """A library that is needed and not installed; the message names the pip command."""


class WorkError(ControlNeXtError):
    """A failure of the work itself: an export, a build, a full disk."""


class OutOfMemoryError(WorkError):
    """A lack of memory for a run at this size.

    ``savers``: the arguments of the pipeline that lower the memory use. ``for_clients``: what a server tells
    of it.
    """

    for_clients = "there is not enough memory for this request; ask for a smaller size, or for fewer images"

    def __init__(self, width: int, height: int, savers: tuple[str, ...], reason: str) -> None:
        changes = ", ".join(f"`{name}`" for name in ("height", "width", *savers))
        super().__init__(
            f"there is not enough memory for {width} x {height} pixels ({reason}); to need less, change"
            f" {changes}"
        )
        self.savers = savers
        self._size, self._reason = (width, height), reason

    def with_savers(self, savers: Iterable[str]) -> OutOfMemoryError:
        """Return the same error for somebody who has only these arguments."""
        return type(self)(*self._size, tuple(savers), self._reason)


class QueueFullError(WorkError):
    """A request that is refused because too many wait already; it may be repeated later.

    ``waiting``: the number of requests that wait.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests wait already, as many as may; repeat the request later")
        self.waiting = waiting


class UnknownModelError(InputError):
    """A name of a model that the server does not have."""


class StoppingError(WorkError):
    """A request that is refused because the server is about to stop."""


class ParityError(WorkError):
    """A difference between the engine's outputs and the PyTorch reference's that is larger than allowed."""


@contextmanager
def blames(argument: str) -> Iterator[None]:
    """Set ``argument`` on an error that the block raises, unless the error has one already."""
    try:
        yield
    except ControlNeXtError as error:
        error.argument = error.argument or argument
        raise


@contextmanager
def begins_with(argument: str) -> Iterator[None]:
    """Have an :class:`InputError` of the block, which does not say what it was given for, begin with
    ``argument``, which it gets. Libraries that are not installed are no fault of an argument."""
    try:
        yield
    except MissingDependencyError:
        raise
    except InputError as error:
        raise InputError(f"{argument}: {error}", argument=argument) from error


def is_mistake(error: BaseException) -> bool:
    """Return whether a request is at fault for an error: not the bundle, nor what is installed."""
    return isinstance(error, InputError) and not isinstance(error, (BundleError, MissingDependencyError))


def is_hopeless(error: BaseException) -> bool:
    """Return whether every other request would have the error too: the bundle or the installation has it.

    A built engine that does not fit one request may fit another.
    """
    return isinstance(error, (BundleError, MissingDependencyError)) and not isinstance(error, EngineError)


def is_failure(error: BaseException) -> bool:
    """Return whether an exception says that something failed: an :class:`Exception`, or the panic of a
    library written in Rust, which is none."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
