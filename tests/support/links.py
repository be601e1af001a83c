"""Bundles whose files are links: those of a Triton repository, a copied location, a hub's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def hard(bundle: Path, target: Path) -> Path:
    """Make a bundle of hard links of the files of ``bundle``."""
    return _linked(bundle, target, lambda path, link: os.link(path, link))


def from_one_directory(bundle: Path, target: Path) -> Path:
    """Make a bundle of symbolic links to files in one directory, as in a hub's cache."""
    return _symbolic(bundle, target, lambda _number: Path())


def from_many_directories(bundle: Path, target: Path) -> Path:
    """Make a bundle of symbolic links to files in directories of their own."""
    return _symbolic(bundle, target, lambda number: Path(str(number)))


KINDS = (hard, from_one_directory, from_many_directories)


def _symbolic(bundle: Path, target: Path, directory: Callable[[int], Path]) -> Path:
    blobs = target.with_name(f"{target.name}-blobs")
    made: list[Path] = []

    def link(path: Path, link: Path) -> None:
        blob = blobs / directory(len(made)) / f"blob{len(made)}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, blob)
        link.symlink_to(blob)
        made.append(blob)

    return _linked(bundle, target, link)


def _linked(bundle: Path, target: Path, link: Callable[[Path, Path], None]) -> Path:
    for path in sorted(bundle.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(bundle)
            copy.parent.mkdir(parents=True, exist_ok=True)
            link(path, copy)
    return target
