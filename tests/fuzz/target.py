"""What a target is: a sound input, changes of it, and what is done with it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

Expected = Literal["same", "any", "refused"]


class Case(msgspec.Struct, frozen=True):
    """A changed input: the ``changes`` (:mod:`fuzz.changes`) of what ``target`` writes.

    ``expected``: whether an accepted input must give the ``same`` result as the sound one, may give ``any``,
    or has to be ``refused``. ``why``: what went wrong before, of a case that is kept as a seed.
    """

    target: str
    changes: list[dict[str, Any]]
    expected: Expected = "any"
    why: str = ""


class Refused(Exception):
    """A refusal with its message, by the command line with its exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class Target(ABC):
    """A kind of input that comes from outside."""

    name: ClassVar[str]
    memory: ClassVar[int] = 4 << 30
    """Address space in bytes that a case may take."""
    seconds: ClassVar[int] = 60
    """Processor time that a case may take."""

    @abstractmethod
    def write_sound(self, directory: Path) -> None:
        """Write a sound input to ``directory``. Called once."""

    @abstractmethod
    def propose(self, sound: Path, rng: Random) -> Case:
        """Return a change of the sound input in directory ``sound``."""

    @abstractmethod
    def attempt(self, directory: Path, output: Path) -> str:
        """Use the input in ``directory`` as a user would; write only below ``output``.

        Return a digest of the result; raise :class:`Refused` or a :class:`ControlNeXtError` where the input
        is refused. Every other exception is a fault.
        """


def digest(*arrays: Any) -> str:
    """Return a digest of arrays (or images) with their shapes."""
    total = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array)
        total.update(f"{values.shape}{values.dtype}".encode() + values.tobytes())
    return total.hexdigest()
