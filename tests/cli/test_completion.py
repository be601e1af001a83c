"""Completion of the command line by the shell, as the shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.cli import Cli


def _completed(*words: str) -> list[str]:
    code = "from controlnext.cli import main; main()"
    asked = {
        "_CONTROLNEXT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ex"], ["export"]),
        (["export", "--dry"], ["--dry-run"]),
        (["export", "--model", "sd"], ["sd15", "sdxl", "sd3"]),
        (["run", "bundle", "--backend", "openv"], ["openvino", "openvino-bf16"]),
    ],
)
def test_subcommands_options_and_names_are_completed(words: list[str], found: list[str]) -> None:
    assert _completed("controlnext", *words) == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(cli: Cli, shell: str) -> None:
    done = cli("--show-completion", shell)
    assert (done.status, done.err) == (0, "")
    assert "_CONTROLNEXT_COMPLETE" in done.out
    assert "--install-completion" in cli("--help").out
