"""What the command line prints: progress bars, tables, JSON."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from controlnext.manifest import ParityRow

Report = Callable[[str, float], None]
"""Takes what is being done and how much is done, from 0 to 1."""


def silence_hints() -> None:
    """Keep other libraries' hints off the terminal: about optional parts (torchvision), image files."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    # about odd metadata and large sizes: an image that cannot be read is an error all the same
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def progress(quiet: bool) -> Iterator[Report]:
    """A bar on stderr; nothing when ``quiet`` or when stderr is no terminal.

    The report raises :class:`KeyboardInterrupt` once Ctrl-C was pressed.
    """
    console = Console(stderr=True)
    columns = BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    bars = Progress(*columns, console=console, disable=quiet or not console.is_terminal)
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


def print_parity(rows: Sequence[ParityRow]) -> None:
    """The parity table on stdout."""
    print_table("Engine against PyTorch", PARITY_COLUMNS, [parity_cells(row) for row in rows])


PARITY_COLUMNS = ("output", "measure", "value", "allowed", "")


def parity_cells(row: ParityRow) -> tuple[str, str, str, str, str]:
    """A row of the parity table as text, under :data:`PARITY_COLUMNS`."""
    bound = "at least" if row.at_least else "at most"
    verdict = "ok" if row.passed else "MISSED"
    return row.name, row.metric, _number(row.value), f"{bound} {_number(row.limit)}", verdict


def _number(value: float) -> str:
    return f"{value:.1e}" if abs(value) < 0.1 else f"{value:g}"
