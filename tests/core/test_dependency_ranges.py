"""The versions that were tested are within the ranges that are promised, at both of their ends."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_INSTALLED = {"onnxruntime-gpu", "tensorrt"}
"""They need a GPU and are in no constraints of what was tested here."""


def _ranges() -> Iterator[Requirement]:
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        yield from (one for one in map(Requirement, texts) if one.name != "controlnext")


RANGES = sorted({str(one): one for one in _ranges()}.items())


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(equals for _, equals, _ in pairs), "a line that is no pin"
    return {canonicalize_name(one): Version(version) for one, _, version in pairs}


@pytest.mark.parametrize(("text", "range_"), RANGES, ids=[text for text, _ in RANGES])
def test_the_lowest_version_is_the_pin(text: str, range_: Requirement) -> None:
    """``>=1.5`` is 1.5, or the first of its releases where that has more parts (1.5.0.114)."""
    (bound,) = [one.version for one in range_.specifier if one.operator == ">="]
    pin = pins("constraints-lowest.txt")[canonicalize_name(range_.name)]
    assert re.fullmatch(rf"{re.escape(bound)}(\.\d+)*", str(pin)), text
    assert pin in range_.specifier


@pytest.mark.parametrize(("text", "range_"), RANGES, ids=[text for text, _ in RANGES])
def test_the_newest_version_that_was_tested_is_in_its_range(text: str, range_: Requirement) -> None:
    name = canonicalize_name(range_.name)
    if name not in NOT_INSTALLED:
        assert pins("constraints.txt")[name] in range_.specifier, text


def test_a_package_has_one_range() -> None:
    """Wherever it is named: else one of the bounds is never tested."""
    found: dict[str, set[str]] = {}
    for one in _ranges():
        found.setdefault(canonicalize_name(one.name), set()).add(str(one.specifier))
    assert not {name: ranges for name, ranges in found.items() if len(ranges) > 1}
