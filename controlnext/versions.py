"""Installed versions against those that an extra needs: pip lets another program's needs replace them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from controlnext.errors import MissingDependencyError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "controlnext"
"""This project's name among the installed ones."""


def check_versions(extra: str) -> None:
    """Raise :class:`MissingDependencyError` if a library of the extra is installed, in another version.

    The message also names who else is installed and takes no version of that range: the two cannot share an
    environment. Libraries that are not installed at all are left to :func:`controlnext.optional.extra`.
    """
    wrong = _wrong(extra)
    if not wrong:
        return
    needs = [f"{need.name}{need.specifier} ({found} is installed)" for need, found in wrong.items()]
    told, command = f"this needs {', '.join(needs)}", f'pip install "{NAME}[{extra}]"'
    clashes = list(_clashes(wrong))
    if not clashes:
        raise MissingDependencyError(f"{told}; run {command}")
    raise MissingDependencyError(
        f"{told}, but {', '.join(clashes)}: they cannot share an environment; make another one with python"
        f" -m venv, and run {command} there"
    )


def _wrong(extra: str) -> dict[Requirement, str]:
    """Return what is needed of the libraries that are installed in another version, with that version."""
    try:
        own = _requirements(metadata.distribution(NAME), extra)
    except metadata.PackageNotFoundError:  # nothing says what is needed
        return {}
    return {
        need: found
        for need in own
        if (found := _version(need.name)) and not need.specifier.contains(found, prereleases=True)
    }


def _clashes(wrong: Iterable[Requirement]) -> Iterator[str]:
    """Yield who needs what, for each installed requirement that excludes one of ``wrong``.

    Packages of ``wrong`` do not count: another version of them may need something else.
    """
    needs = {_canonical(need.name): need for need in wrong}
    for one in metadata.distributions():
        name = one.metadata["Name"] or ""
        if _canonical(name) in {_canonical(NAME), *needs}:
            continue
        for other in _requirements(one):
            need = needs.get(_canonical(other.name))
            if need and not _share_a_version(need, other):
                yield f"{name} {one.version} needs {other.name}{other.specifier}"


def _share_a_version(one: Requirement, other: Requirement) -> bool:
    """Return whether a version that is named in one of the two ranges is in both."""
    both = one.specifier & other.specifier
    named = [clause.version.removesuffix(".*") for clause in both]
    return not named or any(both.contains(version, prereleases=True) for version in named)


def _requirements(package: metadata.Distribution, extra: str = "") -> list[Requirement]:
    """Return what a package needs here, with the extra or without one."""
    from packaging.requirements import Requirement  # of the extra; the runtime does without

    found = map(Requirement, package.requires or ())
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
