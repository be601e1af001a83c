"""What the command line prints: progress bars, tables, JSON."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from controlnext.types import Progress


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A bar on stderr; nothing when ``quiet`` or when stderr is no terminal.

    The report raises :class:`KeyboardInterrupt` once Ctrl-C was pressed.
    """
    console = Console(stderr=True)
    columns = BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    bars = Bars(*columns, console=console, disable=quiet or not console.is_terminal)
    with _interruptible() as check, bars:
        task = bars.add_task("", total=1.0)

        def report(what: str, done: float) -> None:
            check()
            bars.update(task, description=what, completed=done)

        yield report


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """What is yielded, and the end, raise the :class:`KeyboardInterrupt` of a Ctrl-C again: one that comes
    amid a callback is swallowed by some libraries, and the work would go on."""
    interrupted = False

    def handle(_number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, before)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout; numbers that JSON has not (NaN) become null."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; wide cells are folded, never cut."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)
