"""What all kinds of work that the kill campaign kills have in common."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import msgspec
from kill_server import Ended, Moment, RunServer

from controlnext.bundle.files import sha256
from controlnext.bundle.format import check_file
from controlnext.bundle.reader import read_manifest
from controlnext.errors import ControlNeXtError
from support.stub_hub import StubHub

LOCK = ".lock"
"""Names that end so are those of locks, which stay and block nobody."""
Tree = Mapping[str, str]


def tree(directory: Path) -> dict[str, str]:
    """Return the checksums of all files in a directory but for locks, and "" for its directories."""
    found = {}
    for path in sorted(directory.rglob("*")) if directory.exists() else ():
        if not path.name.endswith(LOCK):
            found[path.relative_to(directory).as_posix()] = sha256(path) if path.is_file() else ""
    return found


class Kind(ABC):
    """A kind of work, in a ``directory`` of its own.

    ``share``: of all kills; ``exports``: whether it needs what exports do.
    """

    name: str
    share: int
    exports = False

    def __init__(self, directory: Path, hub: StubHub) -> None:
        self.directory, self.hub = directory, hub
        self.place = directory / "place"
        self.usual: Tree = {}
        directory.mkdir()

    @abstractmethod
    def prepare(self, server: RunServer) -> None:
        """Make what all runs need, and set ``usual``, what an undisturbed run makes."""

    @abstractmethod
    def reset(self, chance: random.Random) -> None:
        """Make ``place`` as it is before a run: empty, or with what an earlier one made."""

    @abstractmethod
    def run(self, server: RunServer, moment: Moment = Moment()) -> Ended:  # noqa: B008
        """Do the work, or kill it at a moment."""

    def result(self) -> Tree:
        """Return what a run makes, in a form that is the same for all: the files of ``place``."""
        return tree(self.place)

    def wanted(self) -> Tree:
        """Return what an undisturbed run makes."""
        return self.usual

    def differences(self) -> str:
        """Return the names in which the result is not that of an undisturbed run."""
        return difference(self.result(), self.wanted())

    def faults(self, before: Tree) -> list[str]:
        """Return what is wrong after a kill: only what was there or the whole result may be seen."""
        now = files(tree(self.place))
        if now in (files(before), files(self.wanted())):
            return []
        return [f"neither as before nor as made: {difference(now, before)}"]

    def leftovers(self) -> list[str]:
        """Return the temporary files and directories that are still there."""
        temporary = [name for name in tree(self.directory.parent / "tmp") if "controlnext" in name]
        return temporary + [name for name in tree(self.place) if is_scratch(name)]


def files(found: Tree) -> Tree:
    """Return the files among what was found, but for temporary ones: an empty directory is nothing."""
    return {name: value for name, value in found.items() if value and not is_scratch(name)}


def is_scratch(name: str) -> bool:
    """Return whether a file is a temporary one or in a temporary directory."""
    return any(
        (part.startswith(".") and part != ".locks") or part.endswith((".incomplete", ".tmp"))
        for part in name.split("/")
    )


def difference(now: Tree, wanted: Tree) -> str:
    """Return the first names in which two differ."""
    names = sorted(name for name in {*now, *wanted} if now.get(name) != wanted.get(name))
    return ", ".join(names[:5]) or "nothing"


def damage(bundle: Path) -> list[str]:
    """Return what is wrong with a bundle by its own manifest."""
    try:
        manifest = read_manifest(bundle)
        for name in manifest.files:
            check_file(bundle, manifest, name)
    except (ControlNeXtError, OSError, msgspec.DecodeError) as error:
        return [f"{bundle} is damaged: {error}"]
    return []


def check(ended: Ended) -> None:
    if ended.status:
        raise RuntimeError(f"an undisturbed run failed with status {ended.status}: {ended.said[-2000:]}")
