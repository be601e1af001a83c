"""A case in a process of its own: limits of time and memory, and a watch on what it opens."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from controlnext.errors import ControlNeXtError, InputError
from fuzz.target import Refused, Target

WAIT = 8
"""A case may take as many times its processor time: the machine may do other things beside it."""
OUTCOME, STDERR, STDOUT = "outcome.json", "stderr.txt", "stdout.txt"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"}
_HARMLESS = {"uname", "lscpu"}
_CHANGES = dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"), slice(1))
_CHANGES |= {"os.rename": slice(2), "os.link": slice(2), "os.symlink": slice(1, 2)}
"""Events that change directories, and which of their arguments are names there."""


class Outcome(msgspec.Struct):
    """What became of a case: ``answered`` with a digest, ``refused`` with a message, ``broken`` by another
    exception, with its traceback; ``trespasses``: what it did that no input may have it do.

    Of a process that said nothing: ``crashed`` or ``hung``, with what it wrote to stderr.
    """

    kind: str
    detail: str
    status: int = 0
    trespasses: list[str] = []


class Running:
    """A case that is being tried in a child of this process."""

    def __init__(self, target: Target, folder: Path) -> None:
        """Start it; ``folder`` has the directories ``input`` and ``outside``, and nothing else."""
        self._target, self._folder = target, folder
        self._ends = time.monotonic() + WAIT * target.seconds
        self.pid = os.fork()
        if self.pid == 0:
            _child(target, folder)

    def poll(self) -> Outcome | None:
        """Return the outcome, or None while it runs. One that takes too long is killed."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return self._read(status)
        if time.monotonic() > self._ends:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return Outcome("hung", self._said())
        return None

    def _read(self, status: int) -> Outcome:
        file = self._folder / OUTCOME
        if file.exists() and os.waitstatus_to_exitcode(status) == 0:
            return msgspec.json.decode(file.read_bytes(), type=Outcome)
        code = os.waitstatus_to_exitcode(status)
        kind = "hung" if -code in (signal.SIGXCPU, signal.SIGKILL) else "crashed"
        return Outcome(kind, f"exit status {code}: {self._said()}", code)

    def _said(self) -> str:
        file = self._folder / STDERR
        return file.read_text(errors="replace")[-3000:] if file.exists() else ""


def _child(target: Target, folder: Path) -> NoReturn:
    code = 1
    try:
        os.setsid()
        _redirect(folder)
        _limit(target)
        seen = _watch(folder, reads_anywhere=target.reads_anywhere)
        outcome = _outcome(target, folder)
        outcome.trespasses = list(dict.fromkeys(seen))
        (folder / OUTCOME).write_bytes(msgspec.json.encode(outcome))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(folder: Path) -> None:
    """Have the process write to files of the case, and find its temporary files and caches there."""
    for number, name in ((1, STDOUT), (2, STDERR)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name in ("tmp", "home", "output"):
        (folder / name).mkdir()
    os.environ.update(TMPDIR=str(folder / "tmp"), HOME=str(folder / "home"), HF_HUB_OFFLINE="1")
    # torch asks for it when it traces, and takes over what the parent has found
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "home" / "inductor")
    # which the parent may have looked up
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    os.chdir(folder / "output")


def _limit(target: Target) -> None:
    faulthandler.enable()
    for kind, limit in (
        (resource.RLIMIT_CPU, target.seconds),
        (resource.RLIMIT_AS, target.memory),
        (resource.RLIMIT_FSIZE, 1 << 30),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _watch(folder: Path, *, reads_anywhere: bool) -> list[str]:
    """Return a list to which is added whatever the process does outside of its directory."""
    seen: list[str] = []
    allowed = [str(folder / name) for name in ("input", "output", "tmp", "home")]
    allowed += [str(folder / OUTCOME), "/dev/null", "/dev/shm/", "/proc/self/"]

    def inside(path: Any, *, entry: bool = False) -> bool:
        """Return whether a path leads to an allowed directory; of an ``entry`` of a directory, whether that
        is one, wherever the entry leads if it is a link."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return True
        given = Path(os.fsdecode(path))
        # not Path.resolve, which raises for links in a circle
        real = f"{os.path.realpath(given.parent)}/{given.name}" if entry else os.path.realpath(given)
        return any(real.startswith(start) for start in allowed)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            canary = isinstance(path, (str, bytes)) and "canary" in os.path.realpath(os.fsdecode(path))
            if (canary and not reads_anywhere) or ((flags or 0) & _WRITES and not inside(path)):
                seen.append(f"opened {path!r}")
        elif event in _CHANGES and not all(map(partial(inside, entry=True), arguments[_CHANGES[event]])):
            seen.append(f"{event} {arguments[:2]!r}")
        elif event in _PROGRAMS and arguments[0] not in _HARMLESS:
            seen.append(f"{event} {arguments[0]!r}")
        elif event == "socket.connect":
            seen.append(f"connected to {arguments[1]!r}")

    sys.addaudithook(hook)
    return seen


def _outcome(target: Target, folder: Path) -> Outcome:
    attempt: Callable[[Path, Path], str] = target.attempt
    try:
        return Outcome("answered", attempt(folder / "input", folder / "output"))
    except Refused as error:
        return Outcome("refused", str(error), error.status)
    except ControlNeXtError as error:
        return Outcome("refused", str(error), 2 if isinstance(error, InputError) else 1)
    except BaseException:
        return Outcome("broken", traceback.format_exc())
