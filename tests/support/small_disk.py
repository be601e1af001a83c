"""A disk that is soon full: a file system in memory of a few kilobytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: int, *options: str) -> Iterator[Path]:
    """Mount a file system of ``size`` bytes at ``place`` within the block; skip the test where that is not
    allowed."""
    place.mkdir(exist_ok=True)
    chosen = ",".join([f"size={size}", *options])
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """Make a directory read-only within the block, for root too; skip the test where that is not allowed."""
    for options in (["--bind", place, place], ["-o", "remount,ro,bind", place]):
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted read-only here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
