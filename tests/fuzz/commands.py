"""The command line in this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from controlnext.cli.app import call, make_application
from fuzz.target import Refused


def run(*arguments: object) -> str:
    """Run ``controlnext`` with these arguments; return what it printed.

    Raises :class:`Refused` with its line on stderr for another exit status than 0.
    """
    before = [os.fstat(number).st_size for number in (1, 2)]
    status = call(make_application(), [str(argument) for argument in arguments], "controlnext")
    out, err = (_written(number, start) for number, start in zip((1, 2), before, strict=True))
    if status == 0:
        return out
    lines = [line for line in err.splitlines() if line.startswith("controlnext: error: ")]
    if len(lines) != 1 or not err.rstrip("\n").endswith(lines[0]):
        raise AssertionError(f"exit status {status}, and on stderr: {err}")
    raise Refused(lines[0], status)


def _written(number: int, start: int) -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    with Path(f"/proc/self/fd/{number}").readlink().open(errors="replace") as file:
        file.seek(start)
        return file.read()
