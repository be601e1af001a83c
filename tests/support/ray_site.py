"""A server on a Ray cluster of this machine, shared by all processes of a test run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_START_S = 400.0
"""Seconds that a server may take to start: 30 on an idle machine of two cores, up to 170 on a busy one."""


@contextmanager
def shared_server(directory: Path, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the address and the process id of a server that ``controlnext serve`` with ``options`` runs.

    The first process that comes starts it and the last one that leaves stops it: a cluster takes a while to
    start, and two of them would be in each other's way. ``directory``: one that they share.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state, lock = directory / "server.json", FileLock(directory / "server.lock", timeout=2 * _START_S)
    with lock:
        found = json.loads(state.read_text()) if state.exists() else _start(directory, options)
        found["users"] += 1
        state.write_text(json.dumps(found))
    try:
        yield found["address"], found["pid"]
    finally:
        with lock:
            left = json.loads(state.read_text())
            left["users"] -= 1
            if left["users"]:
                state.write_text(json.dumps(left))
            else:
                state.unlink()
                _stop(left["pid"])


def _start(directory: Path, options: Sequence[str]) -> dict[str, object]:
    log = directory / "server.log"
    command = [sys.executable, "-m", "controlnext", "serve", "--port", "0", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        line = next((text for text in log.read_text().splitlines() if text.startswith("serving ")), "")
        if line:
            address = "http://" + line.partition("http://")[2].split()[0]
            return {"pid": process.pid, "address": address, "users": 0}
        time.sleep(0.1)
    _stop(process.pid)
    raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")


def _stop(pid: int) -> None:
    """Stop the server, and after a while the whole of its process group."""
    for number, patience in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)
        except ProcessLookupError:
            return
        end = time.monotonic() + patience
        while time.monotonic() < end and _runs(pid):
            time.sleep(0.1)


def _runs(pid: int) -> bool:
    """Return whether a process is there, and not one that has ended and was not waited for."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
