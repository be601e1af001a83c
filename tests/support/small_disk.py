"""A disk that is soon full: a file system in memory of a few kilobytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: int, *options: str) -> Iterator[Path]:
    """Mount a file system of ``size`` bytes at ``place`` within the block; skip the test where that is not
    allowed."""
    place.mkdir(exist_ok=True)
    chosen = ",".join([f"size={size}", *options])
    with _mounted(place, ["-t", "tmpfs", "-o", chosen, "tmpfs", place]):
        yield place


@contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """Make a directory read-only within the block, for root too; skip the test where that is not allowed."""
    with _mounted(place, ["--bind", place, place], ["-o", "remount,ro,bind", place]):
        yield place


@contextmanager
def _mounted(place: Path, *mounts: Sequence[str | Path]) -> Iterator[None]:
    """Run ``mount`` with each of these options; unmount ``place`` at the end of the block. Skip the test
    where that is not allowed."""
    with ExitStack() as stack:
        for number, options in enumerate(mounts):
            done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
            if number == 0:
                stack.callback(subprocess.run, ["umount", "--lazy", place], check=True)
        yield
