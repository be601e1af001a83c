"""The number of threads on the CPU that a user may ask for."""

from __future__ import annotations

import os

from controlnext.errors import InputError

MOST_THREADS = 8 * (os.cpu_count() or 1)
"""More threads than cores only wait for each other; more than this is a mistake."""


def check_threads(threads: int | None) -> None:
    """Raise :class:`~controlnext.errors.InputError` unless ``threads`` is None or an integer from 1 to
    :data:`MOST_THREADS`."""
    is_integer = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (is_integer and 1 <= threads <= MOST_THREADS):
        raise InputError(
            f"threads is {threads!r}; it must be an integer from 1 to {MOST_THREADS}", argument="threads"
        )
