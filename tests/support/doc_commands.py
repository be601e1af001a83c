"""Runs the command lines of the pages, or checks them without running."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement

from controlnext.cli.app import make_application
from controlnext.cli.completion import SHELLS
from support.cli import Cli
from support.doc_blocks import ROOT, words_of
from support.gate import until
from support.serving import Site

RUN = ("run", "inspect", "batch", "triton", "env")
"""Subcommands that run on fake bundles within a second; the others are parsed."""
SERVER, CLIP = "http://127.0.0.1:8000", "video_1a2b"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@dataclass(frozen=True)
class Commands:
    """Runs or checks command lines; ``site`` is where those of curl go."""

    cli: Cli
    monkeypatch: pytest.MonkeyPatch
    site: Callable[[], Site]

    def carry_out(self, command: str, run: bool = True) -> bool:
        """Run a command line, or check what can be checked without; return whether it ran.

        ``run``: whether it may run. Raises if it fails, or if it is not known here.
        """
        words = words_of(command)
        program, arguments = Path(words[0]).name, words[1:]
        if program == "controlnext":
            return self._controlnext(arguments, run)
        if program == "curl":
            return run and self._curl(command)
        checks = {
            "controlnext-export": lambda given: _parse(["export", *given]),
            "optimum-cli": lambda given: _parse([given[0], *given[2:]]),
            "python": self._script,
            "make": _target,
            "pip": _extras,
        }
        if run or program in checks:
            checks[program](arguments)
        return False

    def _controlnext(self, arguments: Sequence[str], run: bool) -> bool:
        _parse(arguments)
        if not run or arguments[0] not in RUN or "--ray" in arguments:
            return False
        done = self.cli(*arguments)
        assert done.status == 0, done.err
        return True

    def _curl(self, command: str) -> bool:
        command = command.replace(SERVER, self.site().address)
        if CLIP in command:
            command = command.replace(CLIP, self._finished_clip())
        line = command.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return True

    def _finished_clip(self) -> str:
        """Return the id of the clip that was asked for last, once it is made."""
        newest: list[dict[str, str]] = []

        def ended() -> bool:
            newest[:] = self.site().http.get("/v1/videos").json()["data"][:1]
            return newest[0]["status"] not in ("queued", "in_progress")

        until(ended)
        assert newest[0]["status"] == "completed", newest
        return newest[0]["id"]

    def _script(self, arguments: Sequence[str]) -> None:
        """Check that a script is there and takes the arguments."""
        if arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1])
            return
        path = ROOT / arguments[0]
        assert path.is_file(), path
        if "argparse" in path.read_text():
            module = importlib.import_module(path.stem)
            with self.monkeypatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, "parse_args", _stop_after_parsing)
                patch.setattr(sys, "argv", [path.name, *arguments[1:]])
                with pytest.raises(_ParsedError):
                    module.main()
        else:
            assert not arguments[1:]


class _ParsedError(Exception):
    """The arguments were accepted."""


def _stop_after_parsing(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> None:
    _, unknown = parser.parse_known_args(given)
    assert not unknown
    raise _ParsedError


def _parse(arguments: Sequence[str]) -> None:
    """Parse a command line of controlnext: options exist, values are accepted, nothing is missing."""
    application = typer.main.get_command(make_application())
    if arguments[0].startswith("-"):
        assert set(arguments) <= {name for option in application.params for name in option.opts} | {*SHELLS}
        return
    commands = application.commands
    commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))


def _target(arguments: Sequence[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(arguments) <= set(targets)


def _extras(arguments: Sequence[str]) -> None:
    """Check that what is installed of this project has these extras."""
    assert arguments[0] == "install"
    for word in arguments[1:]:
        if word.startswith((".", "controlnext")):
            requirement = Requirement("controlnext" + word.removeprefix(".").removeprefix("controlnext"))
            assert requirement.extras <= set(EXTRAS), word
