"""Running the command line in tests, and checking refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Done(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Done]


def assert_refused(done: Done, *words: str, status: int = 2) -> None:
    """Assert that a command failed with one line on stderr with these words, and nothing on stdout."""
    assert done.status == status, done.err
    assert done.out == ""
    assert done.err.startswith("controlnext: error: "), done.err
    assert done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err, done.err
