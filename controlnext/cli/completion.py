"""Completion by the shell: its script, and options whose values have names.

The options ``--install-completion`` and ``--show-completion`` are those of the command line's library, which
takes them without a value alone; here the shell may be named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from controlnext.errors import InputError

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_AT_ONCE = """
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  %(complete_func)s "$@"
fi
"""
_INSTALL, _SHOW = COMPLETION = ("--install-completion", "--show-completion")


def among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return the completion of an option that takes one of these ``names``."""
    known = tuple(names)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def complete_by_shell(command: Any, program: str, option: str, *shells: str) -> None:
    """Print the script that has a shell complete ``program``, or install it; by default for the shell that
    calls. Exits with status 0.

    Raises :class:`InputError` for a shell that has none, or if there is no home directory to install it in.
    """
    if option == _INSTALL and not os.environ.get("HOME", "default"):
        raise InputError("HOME is empty; set it to the directory that the shell reads its configuration from")
    from typer import Context
    from typer.completion import install_callback, show_callback

    shell = " ".join(shells) or _calling_shell()
    if shell not in SHELLS:
        raise InputError(
            f"there is no completion for the shell {shell or '(unknown)'}; name one:"
            f" {program} {option} {' or '.join(SHELLS)}"
        )
    _complete_at_once()
    with Context(command, info_name=program) as context:
        {_INSTALL: install_callback, _SHOW: show_callback}[option](context, command.params[0], shell)


def _complete_at_once() -> None:
    """Have zsh's script complete when zsh loads it, which is at the first tab: the library's defines a
    function there, and completes from the second tab on."""
    from typer import _completion_shared

    # it is no public name: without it the first tab does nothing
    scripts = getattr(_completion_shared, "_completion_scripts", {})
    if "zsh" in scripts and _AT_ONCE not in scripts["zsh"]:
        scripts["zsh"] += _AT_ONCE


def _calling_shell() -> str:
    """Return the name of the shell that calls; where that is another, such as make's, the user's own."""
    import shellingham

    try:
        shell, _ = shellingham.detect_shell()
    except shellingham.ShellDetectionFailure:
        shell = ""
    return shell if shell in SHELLS else Path(os.environ.get("SHELL", "")).name or shell
