"""Output of the command line: progress bars, tables, JSON.

The library rich is imported when it is needed: that takes a tenth of the command's start.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from controlnext.cli.verbosity import is_quiet
from controlnext.errors import one_line, visible
from controlnext.secrets import hidden
from controlnext.types import Progress

logger = logging.getLogger(__name__)

LINE_SECONDS, STILL_SECONDS = 10.0, 60.0
"""Where stderr is no terminal, the time before the first line on the progress and between two, and between
those that say the same."""


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr, or now and then a line if that is not a terminal; yield its callback.
    With ``quiet`` or ``--quiet`` there is neither.

    The callback raises :class:`KeyboardInterrupt` after Ctrl-C, and logs each new task at level DEBUG.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    is_shown = not (quiet or is_quiet())
    bars = Bars(*columns, console=console, disable=not (is_shown and console.is_terminal))
    with _interruptible() as check, bars, _lines(is_shown and not console.is_terminal) as lines:
        task, last = bars.add_task("", total=1.0), ""

        def report(what: str, done: float) -> None:
            nonlocal last
            check()
            if what != last:
                logger.debug("%s (%.0f %%)", what, 100 * done)
                last = what
            bars.update(task, description=what, completed=done)
            lines(what, done)

        yield report


@contextmanager
def _lines(shown: bool) -> Iterator[Progress]:
    """Print a line on the progress now and then if it is ``shown``, also while nothing moves; yield the
    callback."""
    state, began, ended = ("", 0.0), time.monotonic(), threading.Event()

    def take(what: str, done: float) -> None:
        nonlocal state
        state = (what, done)

    def tell() -> None:
        told, when = ("", 0.0), began
        while not ended.wait(LINE_SECONDS):
            now, (what, done) = time.monotonic(), state
            if what and ((what, done) != told or now - when >= STILL_SECONDS):
                told, when = (what, done), now
                line = f"controlnext: {done:.0%}: {one_line(what)} ({now - began:.0f} s)"
                print(line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    if shown:
        thread.start()
    try:
        yield take
    finally:
        ended.set()
        if shown:
            thread.join()


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Yield a function that raises :class:`KeyboardInterrupt` after Ctrl-C; leaving the block raises it too.

    Some libraries swallow the exception when it comes in one of their callbacks, and would work on. Python
    swallows it in a callback of its own, where it prints a traceback: not here.
    """
    interrupted = False

    def handle(_number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    def tell(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            told(unraisable)

    before, told = signal.signal(signal.SIGINT, handle), sys.unraisablehook
    sys.unraisablehook = tell
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = told


def print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout, without secrets. NaN and infinity, which JSON does not have, become
    null."""
    print(msgspec.json.format(msgspec.json.encode(hidden(msgspec.to_builtins(value))), indent=2).decode())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, without secrets. Wide cells are wrapped, never cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    Console(markup=False).print(table)
