"""Names of the files of bundles, which come from outside: none leads out of the bundle, none is a twin."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from controlnext.bundle.files import MANIFEST
from controlnext.errors import BundleError

LONGEST_NAME, LONGEST_PART = 1000, 255
"""Numbers of bytes that file systems take: of a path below its bundle, and of each part of it."""
_RESERVED = frozenset('\\:*?"<>|')
"""Characters that are no part of names on every file system: a drive's colon, the other separator."""


def check_names(names: Collection[str]) -> None:
    """Raise :class:`BundleError` for a name that no file of a bundle can have on every file system, or that
    two files would have where capital letters or accents are not told apart."""
    taken: dict[str, str] = {}
    given = frozenset(names)
    for name in names:
        if not _is_name(name) or any(parent in given for parent in _parents(name)):
            raise BundleError(f"files has {_shown(name)}, which is no name of a file in a bundle")
        twin = taken.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin != name:
            raise BundleError(f"files has {_shown(twin)} and {_shown(name)}, which some disks take for one")


def _is_name(name: str) -> bool:
    path = PurePosixPath(name)
    relative = name == path.as_posix() and not path.is_absolute() and name != "."
    # Windows drops spaces and full stops at the end of a part
    fits = all(len(part.encode()) <= LONGEST_PART and part.rstrip(". ") == part for part in path.parts)
    short = len(name.encode()) <= LONGEST_NAME
    plain = name.isprintable() and not _RESERVED.intersection(name)
    return plain and relative and fits and short and path.name.casefold() != MANIFEST


def _parents(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name).parents]


def _shown(name: str) -> str:
    return ascii(name if len(name) <= LONGEST_PART else f"{name[:LONGEST_PART]}...")


def check_inside(bundle: Path, path: Path) -> None:
    """Raise :class:`BundleError` for a file of ``bundle`` that a link leads out of it, unless to where the
    cache of a hub keeps its files: links of ``<repository>/snapshots/`` to ``<repository>/blobs/``."""
    real, home = path.resolve(), bundle.resolve()
    if real.is_relative_to(home):
        return
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    if snapshots is None or real.parent != snapshots.parent / "blobs":
        raise BundleError(f"{path} is a link to {real}, outside of the bundle; copy that file to its place")
