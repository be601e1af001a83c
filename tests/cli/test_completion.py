"""Completion of the command line by the shell, as the shell asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shellingham

from support.cli import Cli, assert_refused


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


SCRIPTS = pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --command")]
)


@SCRIPTS
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


@SCRIPTS
def test_the_shell_may_be_named(cli: Cli, shell: str, word: str) -> None:
    """As for packages, which have the scripts of all."""
    done = cli("--show-completion", shell)
    assert (done.status, done.err) == (0, "")
    assert word in done.out


def test_below_another_shell_it_is_the_users_own(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("sh", "/bin/sh"))
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert "compdef" in cli("--show-completion").out


def test_a_shell_without_completion_is_refused_with_those_that_have_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("sh", "/bin/sh"))
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    for given in ([], ["tcsh"]):
        assert_refused(
            cli("--show-completion", *given),
            "no completion for the shell tcsh; name one: controlnext --show-completion bash or zsh",
        )


def test_it_is_installed_for_a_named_shell(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = cli("--install-completion", "bash")
    assert (done.status, done.err) == (0, "")
    (script,) = tmp_path.glob(".bash_completions/*")
    assert "_CONTROLNEXT_COMPLETE" in script.read_text()
    assert str(script) in done.out


def test_without_a_home_it_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's library would write to the root of the file system."""
    monkeypatch.setenv("HOME", "")
    assert_refused(cli("--install-completion", "bash"), "HOME is empty; set it to the directory")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["export", "--help"]])
def test_help_shows_no_value_for_options_that_take_none(cli: Cli, arguments: list[str]) -> None:
    shown = cli(*arguments).out
    assert "<bool>" not in shown
    assert "<list" not in shown
    assert ("[SHELL]" in shown) == (len(arguments) == 1)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_at_the_first_tab(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """zsh loads the installed script when it completes for the first time."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli("--install-completion", "zsh").status == 0
    assert "$zsh_eval_context[-1] == loadautofunc" in (tmp_path / ".zfunc" / "_controlnext").read_text()
    (tmp_path / "typed.zsh").write_text(_TYPED)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["zsh", "-f", "typed.zsh"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "inspect" in done.stdout, done.stdout


_TYPED = """
zmodload zsh/zpty
zpty shell zsh -i
zpty -w -n shell $'PS1=; print rea""dy\\n'
zpty -r -m shell begun '*ready*'
zpty -w -n shell $'controlnext ins\\t'
zpty -r -m shell typed '*inspect*'
print -r -- "$typed"
zpty -d shell
"""
