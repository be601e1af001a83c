"""Errors and warnings on the command line name options in place of arguments, with the right exit
statuses."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from controlnext.cli.app import call, make_application
from controlnext.cli.option_names import ARGUMENTS, OptionFormatter, OptionNames
from controlnext.errors import (
    BundleError,
    CheckpointError,
    ControlNeXtError,
    EngineError,
    InputError,
    MissingDependencyError,
    OutOfMemoryError,
    ParityError,
    WorkError,
)
from support.cli import Cli

ENGINE = EngineError(
    "no engine",
    Path("a bundle"),
    {
        "backend": "tensorrt-rtx",
        "height": "64:128:192",
        "optimization_level": 0,
        "workspace": 512 << 20,
        "strip_weights": True,
        "targets": ["sm86", "sm89"],
    },
)
BUILD = (
    "no engine; build one: controlnext build 'a bundle' --backend tensorrt-rtx --height 64:128:192"
    " --optimization-level 0 --workspace 512 --strip-weights --compute-capability sm86"
    " --compute-capability sm89"
)


@pytest.fixture(scope="module")
def names() -> OptionNames:
    return OptionNames(make_application())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("give `unet_weights` and `unet_increments`", "give --unet-weights and --unet-increments"),
        ("set `precision` to fp32", "set --precision to fp32"),
        ("`family` sd15 `variant` mid", "--model sd15 --variant mid"),
        ("`leave_out` or `random_seed`", "--no-t5 or --random-weights"),
        ("`num_inference_steps`, `control_images`", "--steps, --control-image"),
        ("set `bundle` or `calibrated`", "set `bundle` or `calibrated`"),
        ("log in with `hf auth login`", "log in with `hf auth login`"),
        ("precision is fp8", "precision is fp8"),
    ],
)
def test_arguments_that_an_option_gives_become_that_option(names: OptionNames, text: str, shown: str) -> None:
    assert names.translate(text) == shown


@pytest.mark.parametrize("verb", ["is", "has", "was", "begins"])
def test_the_argument_at_fault_begins_a_message_without_backticks(names: OptionNames, verb: str) -> None:
    error = InputError(f"num_inference_steps {verb} 0", argument="num_inference_steps")
    assert names.describe(error) == f"--steps {verb} 0"
    assert names.describe(InputError("steps of num_inference_steps has", argument=None)).startswith("steps")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--guidance-scale", "3"], "--guidance-scale (Possible options: --guidance, --scale)"),
        (["--num-inference-steps", "3"], "--num-inference-steps (Possible options: --steps)"),
        (["-control-image", "a.png"], "-control-image (Possible options: --control-image)"),
        (["--promt", "a"], "--promt (Possible options: --prompt)"),
        (["--zzz"], "--zzz"),
    ],
)
def test_an_option_of_another_name_is_told_by_its_words(cli: Cli, given: list[str], told: str) -> None:
    done = cli("run", "bundle", *given)
    assert done.err == f"controlnext: error: No such option: {told}\n"


def test_the_option_is_told_whose_value_is_not_there(names: OptionNames) -> None:
    error = CheckpointError("nobody/nothing: no such file or directory here, and ...", argument="vae")
    assert names.describe(error).startswith("--vae nobody/nothing: no such file")


def test_every_entry_of_the_table_is_an_option(names: OptionNames) -> None:
    for option, arguments in ARGUMENTS.items():
        for argument in arguments:
            assert names.translate(f"`{argument}`") == f"--{option.replace('_', '-')}"


def test_an_engine_that_does_not_fit_comes_with_the_command_that_builds_one(names: OptionNames) -> None:
    assert names.describe(ENGINE) == BUILD


def test_the_command_that_builds_an_engine_is_one_that_the_command_line_takes(names: OptionNames) -> None:
    """All options are valid: the only error is the missing bundle."""
    command = shlex.split(names.describe(ENGINE).partition("build one: ")[2])
    with pytest.raises(BundleError, match="a bundle is not a bundle"):
        typer.main.get_command(make_application()).main(command[1:], standalone_mode=False)


def test_what_libraries_log_is_shown_with_options_and_other_handlers_get_it_as_it_was(
    names: OptionNames,
) -> None:
    record = logging.makeLogRecord(
        {
            "levelno": logging.INFO,
            "msg": "going on without %s: %s; set `precision`",
            "args": ("`vae`", ENGINE),
        }
    )
    shown = OptionFormatter(names, "controlnext: %(message)s").format(record)
    assert shown == f"controlnext: going on without --vae: {BUILD}; set --precision"
    assert record.args == ("`vae`", ENGINE)


_LOGS = """
import logging, sys, typer
from controlnext.cli.app import call
from controlnext.errors import InputError

application = typer.Typer()

@application.command()
def work():
    logging.getLogger("controlnext.weights.beside").warning("%s: give it with `unet_weights`", "a file")
    raise InputError("give `control` a file")

sys.exit(call(application, [], "work"))
"""


def test_warnings_and_errors_of_a_command_name_options() -> None:
    """Run in a new interpreter, because pytest captures the log in this one."""
    done = subprocess.run([sys.executable, "-c", _LOGS], capture_output=True, text=True, check=False)
    warning, error = "warning: a file: give it with --unet-weights", "error: give --control a file"
    assert done.stderr == f"controlnext: {warning}\ncontrolnext: {error}\n"
    assert done.returncode == 2


def test_signs_that_would_change_a_terminal_are_written_out(
    names: OptionNames, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In errors and in what is logged: names of files may have any."""
    odd = tmp_path / "\x1b[31m\nred"
    assert call(make_application(), ["inspect", str(odd)], "controlnext") == 2
    assert "/\\x1b[31m red" in capsys.readouterr().err
    record = logging.LogRecord("x", logging.WARNING, "", 0, "job %s", ("a\x07\u202eb",), None)
    assert OptionFormatter(names, "%(message)s").format(record) == r"job a\x07\u202eb"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        *((cls("bad"), 2) for cls in (InputError, CheckpointError, BundleError, MissingDependencyError)),
        (ENGINE, 2),
        *((cls("failed"), 1) for cls in (ControlNeXtError, WorkError, ParityError)),
        (OutOfMemoryError(8, 8, ("offload",), "no room"), 1),
    ],
)
def test_the_exit_status_is_2_for_bad_input_and_1_for_work_that_failed(
    error: ControlNeXtError, status: int
) -> None:
    application = typer.Typer()

    @application.command()
    def work() -> None:
        raise error

    assert call(application, [], "work") == status
