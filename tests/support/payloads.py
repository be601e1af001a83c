"""Pickles with code in them, which leave a trace where they are carried out."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Command:
    """Pickled, it runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def _content(trace: Path) -> dict[str, Any]:
    return {"weight": torch.zeros(2), "code": Command(f"touch {trace}")}


def _zip(path: Path, trace: Path) -> None:
    torch.save(_content(trace), path)


def _old(path: Path, trace: Path) -> None:
    torch.save(_content(trace), path, _use_new_zipfile_serialization=False)


def _plain(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps({"code": Command(f"touch {trace}")}))


PAYLOADS: dict[str, Callable[[Path, Path], None]] = {"zip": _zip, "old": _old, "plain": _plain}
"""What writes a file whose code would make the file ``trace``, by the form of the pickle."""
