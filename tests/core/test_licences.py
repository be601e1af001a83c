"""The list of licences names every package of an installation and every file of the wheel."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import licences
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
SOURCES = {".py", ".pyc"}


def _pinned(*names: str) -> bool:
    """Return whether packages are here in the versions of constraints.txt."""
    try:
        return all(distribution(name).version.partition("+")[0] == PINS[name] for name in names)
    except PackageNotFoundError:
        return False


def test_the_packages_are_those_of_an_installation() -> None:
    """With what they say of their licence, which none may leave open."""
    if sys.version_info[:2] != (3, 11) or not _pinned("numpy", "torch", "ray", "transformers"):
        pytest.skip("the packages here are not those of constraints.txt on Python 3.11")
    lines = licences.table()
    assert not [line for line in lines if "unknown" in line.lower()]
    listed = PAGE.partition(licences.BEGIN)[2].partition(licences.END)[0]
    assert listed.strip().splitlines() == lines, "run python benchmarks/licences.py"


def test_every_copyleft_package_is_explained() -> None:
    named = re.findall(r"^\| ([\w-]+) \|.*\*\*\(copyleft\)\*\*", PAGE, flags=re.MULTILINE)
    assert named
    above = PAGE.partition(licences.BEGIN)[0]
    assert not [name for name in named if name not in above]


def test_every_file_that_is_no_source_has_an_origin() -> None:
    """Of the wheel's packages, and of the example and the data of tests."""
    patterns = re.findall(r"`([\w/.*]+)`", PAGE.partition("## Contained")[2].partition("## Copyleft")[0])
    listed = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    listed |= {path for pattern in patterns if "**" in pattern for path in ROOT.glob(f"{pattern}/*")}
    folders = (
        "controlnext",
        "export",
        "engines",
        "runtime",
        "examples/shapes/model",
        "tests/data",
        "tests/golden",
    )
    files = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    missing = {str(path.relative_to(ROOT)) for path in files - listed if path.suffix not in SOURCES}
    assert not missing


def test_the_wheel_has_the_licences() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["license"] == "Apache-2.0"
    assert settings["project"]["license-files"] == ["LICENSE"]
    assert (ROOT / "controlnext/weights/configs/clip/LICENSE").is_file()
