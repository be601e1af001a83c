"""Completion of the command line by the shell, as the shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import shellingham

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


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --command")]
)
def test_the_script_of_the_shell_that_calls_is_shown(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, shell: str, word: str
) -> None:
    """The command line's library looks for that shell among the processes above this one."""
    monkeypatch.setattr(shellingham, "detect_shell", lambda: (shell, f"/bin/{shell}"))
    done = cli("--show-completion")
    assert (done.status, done.err) == (0, "")
    assert "_CONTROLNEXT_COMPLETE" in done.out
    assert word in done.out
    assert "--install-completion" in cli("--help").out
