"""The ``controlnext`` command: its subcommands, and errors as one line with an exit status."""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path
from typing import Literal

import typer
from typer.core import TyperGroup

import controlnext
from controlnext.bundle.files import is_full
from controlnext.cli import verbosity
from controlnext.cli.batch import batch
from controlnext.cli.bench import bench
from controlnext.cli.build import build
from controlnext.cli.completion import COMPLETION, complete_by_shell
from controlnext.cli.config_file import ConfigCommand
from controlnext.cli.env import env
from controlnext.cli.export import export
from controlnext.cli.inspect import inspect
from controlnext.cli.option_names import OptionFormatter, OptionNames, reword, where_to_look
from controlnext.cli.ray_options import RayCommand
from controlnext.cli.run import run
from controlnext.cli.serve import ServeCommand, serve
from controlnext.cli.triton import triton
from controlnext.cli.verbosity import Command
from controlnext.cli.verify import verify
from controlnext.errors import ControlNeXtError, InputError, one_line
from controlnext.hints import silence_hints
from controlnext.secrets import hide_secrets_of_tracebacks

MARKUP: Literal["markdown"] = "markdown"
"""The form of help texts, whose lines are joined."""
FAILED, BAD_INPUT = 1, 2
"""Exit statuses: the work failed; the input cannot be used."""
_MISTAKES = {
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
}
"""Errors of a path that was given."""


class _Group(verbosity.PlainFlags, TyperGroup):
    """The command above the subcommands."""


def main(arguments: list[str]) -> int:
    """Run ``controlnext`` and return the exit status."""
    return call(make_application(), arguments, "controlnext")


def export_main(arguments: list[str]) -> int:
    """Run ``controlnext-export``, the same as ``controlnext export``, and return the exit status."""
    application = typer.Typer(rich_markup_mode=MARKUP)
    application.command(cls=ConfigCommand)(export)
    return call(application, arguments, "controlnext-export")


def export_in_optimum(arguments: list[str]) -> int:
    """Run ``optimum-cli export controlnext``, the same as ``controlnext export``, and return the exit status.

    Completion by the shell is left out: it is a matter of the program, which is optimum's.
    """
    application = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
    application.command(cls=ConfigCommand)(export)
    return call(application, arguments, "optimum-cli export controlnext", completes=False)


def call(application: typer.Typer, arguments: list[str], name: str, *, completes: bool = True) -> int:
    """Run the command line ``arguments`` and return the exit status.

    ``completes``: whether the program ``name`` has options that let shells complete.
    Bad input and work that failed become one line on stderr; any other exception is a bug and is not caught.
    """
    names = OptionNames(make_application())
    handler = logging.StreamHandler()
    handler.setFormatter(OptionFormatter(names, verbosity.PATTERN))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    silence_hints()
    hide_secrets_of_tracebacks()
    command = typer.main.get_command(application)
    try:
        _check_text(arguments)
        if completes and arguments[:1] and arguments[0] in COMPLETION:
            complete_by_shell(command, name, *arguments)
        with verbosity.undone():
            return command.main(arguments, prog_name=name, standalone_mode=False) or 0
    except ControlNeXtError as error:
        return _fail(names.describe(error), BAD_INPUT if isinstance(error, InputError) else FAILED)
    except OSError as error:
        if error.filename is None and not is_full(error):
            raise
        return _fail(*_of_files(error))
    except MemoryError as error:
        return _fail(f"there is not enough memory ({error})", FAILED)
    except typer.TyperException as error:
        reword(error, arguments)
        return _fail(error.format_message().rstrip(".") + where_to_look(error), error.exit_code)


def make_application() -> typer.Typer:
    """Return the command line with all of its subcommands."""
    application = typer.Typer(cls=_Group, rich_markup_mode=MARKUP)
    application.callback(invoke_without_command=True)(_describe)
    application.command(cls=ConfigCommand)(export)
    for command in (build, run, triton, verify, bench, inspect, env):
        application.command(cls=Command)(command)
    application.command(cls=ServeCommand)(serve)
    application.command(cls=RayCommand)(batch)
    return application


def _describe(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Export, verify and run ControlNeXt models with ONNX Runtime and TensorRT."""
    if version:
        print(controlnext.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _check_text(arguments: list[str]) -> None:
    """Raise :class:`InputError` for an argument that is no text, which neither JSON nor libraries take, and
    where the working directory is gone, which relative paths are read from."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"argument {argument!r} is not text in UTF-8; give it in UTF-8, or rename the file"
            ) from error
    try:
        Path.cwd()
    except OSError as error:
        raise InputError("the working directory is gone; change to another one") from error


def _of_files(error: OSError) -> tuple[str, int]:
    """Return message and status for an error of the file system that no command has foreseen."""
    place = f" that holds {error.filename}" if error.filename else ""
    if is_full(error):
        return f"the disk{place} is full; make room, and run again", FAILED
    problem = f"cannot use {error.filename}: {error.strerror}"
    if error.errno in _MISTAKES:
        return f"{problem}; give another path, or change its permissions", BAD_INPUT
    return f"{problem}; check the file system, and run again", FAILED


def _fail(message: str, status: int) -> int:
    print(f"controlnext: error: {one_line(message)}", file=sys.stderr)
    return status
