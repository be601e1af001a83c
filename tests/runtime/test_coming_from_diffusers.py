"""docs/coming-from-diffusers.md has every argument of diffusers' call, and what it names here is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLControlNetPipeline

from controlnext.runtime import ImagePipeline

TEXT = (Path(__file__).parents[2] / "docs" / "coming-from-diffusers.md").read_text()
_NAME = re.compile(r"`(\w+)`")


def _rows() -> list[list[str]]:
    """The cells of the table of the call."""
    table = TEXT.partition("## The call")[2].partition("\n\nAround")[0]
    return [line.strip("| ").split(" | ", 1) for line in table.splitlines() if line.startswith("| `")]


def test_no_argument_is_missing_and_none_is_made_up() -> None:
    told = [name for there, _ in _rows() for name in _NAME.findall(there)]
    call = inspect.signature(StableDiffusionXLControlNetPipeline.__call__).parameters
    assert sorted(told) == sorted(set(call) - {"self", "kwargs"})


@pytest.mark.parametrize(("there", "here"), _rows())
def test_what_takes_its_place_is_an_argument(there: str, here: str) -> None:
    own = set(inspect.signature(ImagePipeline.__call__).parameters)
    if here.startswith("the same"):
        assert set(_NAME.findall(there)) <= own
    elif here.startswith("`"):
        first = _NAME.findall(here.replace('={"name": scale}', "").partition(";")[0])
        assert not first or first[0] in own or here.startswith("`controlnext")
