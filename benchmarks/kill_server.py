"""Runs that can be killed: a server of processes that have imported everything, and the moments of kills.

A run is a fork of the server, so that a kill hits its work and not the imports of seconds before it. It leads
a process group, and the whole group is killed: from outside after a time, or from inside when it is about to
open, rename or remove a file for the n-th time.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.symlink"}
"""Audit events before which a run may be killed; of ``open`` those that write."""


@dataclass(frozen=True)
class Moment:
    """When a run is killed: after ``seconds``, or before its change of files number ``change``; or never."""

    seconds: float | None = None
    change: int | None = None

    def __str__(self) -> str:
        if self.change is not None:
            return f"before change {self.change} of files"
        return "never" if self.seconds is None else f"after {self.seconds:.3f} s"


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit status (-9: it was killed), time, number of changes of files, output."""

    status: int
    seconds: float
    changes: int
    said: str


def choose_moment(chance: random.Random, usual: Ended) -> Moment:
    """Return a random moment within a run like ``usual``: half of them by time, half by changes of files; of
    both a third is at the end, where renames are."""
    late = chance.random() < 1 / 3
    share = chance.uniform(0.85, 1.0) if late else chance.random()
    if chance.random() < 0.5 or not usual.changes:
        return Moment(seconds=share * usual.seconds)
    return Moment(change=1 + min(int(share * usual.changes), usual.changes - 1))


class RunServer:
    """The server; ``module`` has the functions that are run, and is imported first."""

    def __init__(self, module: str, log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        paths = os.pathsep.join([str(Path(__file__).parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__, module],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, function: str, *arguments: object, moment: Moment = Moment()) -> Ended:
        """Run a function of the module and wait for the end, or kill it at a ``moment``."""
        self._log.write_text("")
        call = [function, [str(one) for one in arguments], str(self._log), moment.change]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        group, started = int(self._answer()), time.monotonic()
        if moment.seconds is not None:
            time.sleep(moment.seconds)
            _kill(group)
        status = int(self._answer())
        seconds, lines = time.monotonic() - started, self._log.read_text(errors="replace").splitlines()
        counts = [int(line.partition(" ")[2]) for line in lines if line.startswith("changes: ")]
        return Ended(status, seconds, sum(counts), "\n".join(lines))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the server of runs has ended")
        return answer

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _kill(group: int) -> None:
    # it may have no group yet, or have ended
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(group, signal.SIGKILL)


def _serve(module: Any) -> None:
    """Fork for each line of stdin; print the process, and its status when it has ended."""
    for line in sys.stdin:
        process = os.fork()
        if not process:
            _be_run(module, *json.loads(line))
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _be_run(module: Any, function: str, arguments: list[str], log: str, change: int | None) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    counted, status = _count_changes(change), 1
    try:
        getattr(module, function)(*arguments)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    print(f"\nchanges: {counted[0]}", flush=True)
    sys.stderr.flush()
    os._exit(status)


def _count_changes(last: int | None) -> list[int]:
    """Count changes of files in a list of one number, and kill the process group before that of number
    ``last``."""
    counted = [0]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not _writes(arguments)):
            return
        counted[0] += 1
        if counted[0] == last:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)
    return counted


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


if __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]))
