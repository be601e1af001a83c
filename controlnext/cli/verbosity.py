"""How much a command tells: ``--quiet`` and ``--verbose``, which every subcommand has.

The module ``logging`` keeps the choice: :func:`is_quiet` reads it there.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from controlnext.cli.completion import COMPLETION
from controlnext.cli.option_names import OptionFormatter
from controlnext.errors import InputError

PACKAGE = logging.getLogger("controlnext")
"""The logger above those of all modules."""
PANEL = "Messages"
_OF_LIST = re.compile(r"<list\[(.+)\]>")
PATTERN = "controlnext: %(mark)s%(message)s"
VERBOSE_PATTERN = "controlnext: %(mark)s%(relativeCreated)d ms, %(name)s: %(message)s"
"""Forms of a log line. The time is that since the command was started."""


@contextmanager
def undone() -> Iterator[None]:
    """Undo at the end of the block what the options changed."""
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        PACKAGE.setLevel(logging.NOTSET)


def is_quiet() -> bool:
    """Return whether a command is to tell results and errors alone."""
    return not logging.getLogger().isEnabledFor(logging.WARNING)


def level() -> int:
    """Return the level from which on a server is to write its log."""
    if is_quiet():
        return logging.ERROR
    return PACKAGE.level or logging.INFO


def _be_quiet(given: bool) -> None:
    if given or not sys.stderr.isatty():
        # read when the library is imported, which is after this
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not given:
        return
    logging.disable(logging.WARNING)
    _check()
    warnings.simplefilter("ignore")


def _be_verbose(given: bool) -> None:
    if not given:
        return
    PACKAGE.setLevel(logging.DEBUG)
    _check()
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, OptionFormatter):
            handler.formatter.set_pattern(VERBOSE_PATTERN)


def _check() -> None:
    if is_quiet() and PACKAGE.level:
        raise InputError("--quiet and --verbose contradict each other; give one of them")


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_be_quiet,
        expose_value=False,
        help="Print results and errors only: no progress, no warnings.",
        rich_help_panel=PANEL,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_be_verbose,
        expose_value=False,
        help="Print the debug log on stderr, with the time since the start.",
        rich_help_panel=PANEL,
    ),
]


def _options(quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Stand for a command that has these options alone."""


@cache
def parameters_of(function: Any) -> list[Any]:
    """Return the parameters of a function as the command line library has them, for a command of another."""
    application = typer.Typer(add_completion=False)
    application.command()(function)
    return list(typer.main.get_command(application).params)


class PlainFlags:
    """The part of a command or a group whose help shows no type for options that take no value, and of those
    that may be repeated the type of one."""

    def get_params(self, context: Any) -> list[Any]:
        """Return the parameters, as the base class does."""
        params: list[Any] = super().get_params(context)  # type: ignore[misc]
        for parameter in (one for one in params if one.metavar is None):
            # before 0.29 the library shows no type of flags, and of a list that of one
            shown = getattr(parameter, "display_type", None)
            if getattr(parameter, "is_flag", False):
                parameter.metavar = "[SHELL]" if set(parameter.opts) & set(COMPLETION) else ""
            elif getattr(parameter, "multiple", False) and shown:
                parameter.metavar = _OF_LIST.sub(r"<\1>", shown(context))
        return params


class Command(PlainFlags, TyperCommand):
    """A subcommand: besides its own options it has those of this module, which it need not take."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.params = [*self.params, *parameters_of(_options)]
