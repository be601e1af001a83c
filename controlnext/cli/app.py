"""The ``controlnext`` command: its subcommands, and errors as one line with an exit status."""

from __future__ import annotations

import logging
import sys

import typer

import controlnext
from controlnext.cli.bench import bench
from controlnext.cli.build import build
from controlnext.cli.export import export
from controlnext.cli.inspect import inspect
from controlnext.cli.run import run
from controlnext.cli.verify import verify
from controlnext.errors import ControlNeXtError, WorkError
from controlnext.hints import silence_hints


def main() -> None:
    """Console script ``controlnext``."""
    sys.exit(call(_application(), sys.argv[1:], "controlnext"))


def export_main() -> None:
    """Console script ``controlnext-export``: the same as ``controlnext export``."""
    application = typer.Typer(add_completion=False)
    application.command()(export)
    sys.exit(call(application, sys.argv[1:], "controlnext-export"))


def call(application: typer.Typer, arguments: list[str], name: str) -> int:
    """Run the command line ``arguments``; returns the exit status.

    A user's mistake and work that failed become one line on stderr; any other exception is a bug and passes.
    """
    logging.basicConfig(format="controlnext: %(message)s", level=logging.WARNING)
    silence_hints()
    command = typer.main.get_command(application)
    try:
        return command.main(arguments, prog_name=name, standalone_mode=False) or 0
    except ControlNeXtError as error:
        return _fail(str(error), error.exit_status)
    except MemoryError as error:
        return _fail(f"there is not enough memory ({error})", WorkError.exit_status)
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code)


def _application() -> typer.Typer:
    application = typer.Typer(add_completion=False)
    application.callback(invoke_without_command=True)(_describe)
    for command in (export, build, run, verify, bench, inspect):
        application.command()(command)
    return application


def _describe(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """ControlNeXt models from PyTorch to production: export, check and run them."""
    if version:
        print(controlnext.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _fail(message: str, status: int) -> int:
    line = " ".join(message.splitlines())
    print(f"controlnext: error: {line}", file=sys.stderr)
    return status
