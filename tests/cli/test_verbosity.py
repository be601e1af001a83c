"""``--quiet`` and ``--verbose`` are options of every subcommand, and of what all of them tell."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console

from controlnext.cli import console, verbosity
from controlnext.cli.app import call, make_application
from controlnext.cli.console import progress
from controlnext.cli.verbosity import Command
from controlnext.runtime.serving.log_format import write_log
from support.cli import Cli, assert_refused
from support.gate import until

COMMANDS = typer.main.get_command(make_application()).commands  # type: ignore[attr-defined]

_TELLS = """
import logging, sys, typer, warnings
from controlnext.cli.app import call
from controlnext.cli.console import progress
from controlnext.cli.verbosity import Command

application = typer.Typer(add_completion=False)

@application.command(cls=Command)
def work():
    with progress(quiet=False) as report:
        report("first", 0.0)
        report("first", 0.5)
    log = logging.getLogger("controlnext.weights.beside")
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("a line of %s", level)
    logging.getLogger("another.library").debug("not ours")
    warnings.warn("of a library")
    print("result")

sys.exit(call(application, sys.argv[1:], "work"))
"""


def _told(*options: str) -> tuple[str, list[str]]:
    """Run a command in a new interpreter, because pytest captures the log in this one."""
    command = [sys.executable, "-c", _TELLS, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_both(name: str, cli: Cli) -> None:
    found = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {"--quiet", "-q", "--verbose", "-v"} <= found
    assert_refused(cli(name, "-q", "-v"), "--quiet and --verbose contradict each other; give one")


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_quiet_leaves_results_and_errors(option: str) -> None:
    assert _told(option) == ("result\n", ["controlnext: error: a line of error"])


def test_without_an_option_there_are_warnings_too() -> None:
    out, err = _told()
    assert out == "result\n"
    assert "controlnext: warning: a line of warning" in err
    assert "controlnext: error: a line of error" in err
    assert not any(level in line for level in ("info", "debug") for line in err)


def test_the_hubs_library_draws_bars_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks a variable when it is imported; what the user set stays."""
    variable = "HF_HUB_DISABLE_PROGRESS_BARS"
    for given in ("0", ""):
        monkeypatch.setenv(variable, given)
        if not given:
            monkeypatch.delenv(variable)
        program = _TELLS.replace('print("result")', f"import os; print(os.environ['{variable}'])")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == (given or "1")


@pytest.mark.parametrize("option", ["--verbose", "-v"])
def test_verbose_tells_the_debug_log_of_this_package_and_each_task_once(option: str) -> None:
    out, err = _told(option)
    assert out == "result\n"
    lines = [line.partition(" ms, ")[2] for line in err if line.startswith("controlnext: ")]
    levels = [f"controlnext.weights.beside: a line of {one}" for one in ("debug", "info", "warning", "error")]
    assert lines == ["controlnext.cli.console: first (0 %)", *levels]
    assert "not ours" not in " ".join(err)


def test_what_a_command_was_asked_ends_with_it(caplog: pytest.LogCaptureFixture) -> None:
    application = typer.Typer()

    @application.command(cls=Command)
    def work() -> None:
        found.append((verbosity.is_quiet(), verbosity.level()))

    found: list[tuple[bool, int]] = []
    for options in (["--quiet"], ["--verbose"], []):
        assert call(application, options, "work") == 0
    assert found == [(True, logging.ERROR), (False, logging.DEBUG), (False, logging.INFO)]
    logging.getLogger("controlnext").warning("still told")
    assert "still told" in caplog.text


@pytest.mark.parametrize("quiet", [True, False])
def test_no_progress_bar_is_drawn_with_quiet(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Console, "is_terminal", property(lambda _console: True))
    with verbosity.undone():
        logging.disable(logging.WARNING if quiet else logging.NOTSET)
        with progress(quiet=False) as report:
            report("work", 0.5)
    assert ("work" in capfd.readouterr().err) != quiet


def test_without_a_terminal_a_long_command_tells_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also while nothing moves, and on one line whatever it says."""
    monkeypatch.setattr(console, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(console, "STILL_SECONDS", 0.05)
    told: list[str] = []

    def wait_for(pattern: str) -> None:
        def is_told() -> bool:
            told.append(capfd.readouterr().err)
            return re.search(pattern, "".join(told), re.MULTILINE) is not None

        until(is_told)

    with progress(quiet=False) as report:
        report("first", 0.1)
        wait_for(r"^controlnext: 10%: first \(\d+ s\)$")
        report("second\x1b\ntask", 0.2)
        wait_for(r"(^controlnext: 20%: second\\x1b task \(\d+ s\)\n){2}")


def test_a_quiet_or_short_command_tells_no_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for quiet, seconds in ((True, 0.01), (False, 10)):
        monkeypatch.setattr(console, "LINE_SECONDS", seconds)
        with progress(quiet) as report:
            report("work", 0.5)
            time.sleep(0.1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("level", [logging.ERROR, logging.INFO, logging.DEBUG])
def test_a_server_writes_its_log_from_the_level_on(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("controlnext.runtime.serving")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    before = logger.level
    try:
        write_log(as_json=False, prompts=True, level=level)
        assert logger.level == level
    finally:
        logger.setLevel(before)


def test_a_command_with_json_is_quiet_too(cli: Cli, tmp_path: Path) -> None:
    done = cli("env", "--json", "--quiet")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["controlnext"]
    assert not list(tmp_path.iterdir())
