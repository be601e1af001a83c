"""Bundles whose files are links: those of a Triton repository, a copied location, a hub's cache, a mounted
volume."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def hard(bundle: Path, target: Path) -> Path:
    """Make a bundle of hard links of the files of ``bundle``."""
    return _linked(bundle, target, lambda path, link: os.link(path, link))


def from_hub_cache(bundle: Path, target: Path) -> Path:
    """Make a bundle of symbolic links as in a hub's cache; return its snapshot."""
    snapshot = target / "snapshots" / "0f1e"
    return _symbolic(bundle, snapshot, lambda number: target / "blobs" / f"blob{number}")


def from_many_directories(bundle: Path, target: Path) -> Path:
    """Make a bundle of symbolic links to files in directories of their own within it, as volumes that change
    as a whole have them."""
    return _symbolic(bundle, target, lambda number: target / f"..{number}" / f"file{number}")


KINDS = (hard, from_hub_cache, from_many_directories)


def _symbolic(bundle: Path, target: Path, place: Callable[[int], Path]) -> Path:
    made: list[Path] = []

    def link(path: Path, link: Path) -> None:
        blob = place(len(made))
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
