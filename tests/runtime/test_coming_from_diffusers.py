"""docs/coming-from-diffusers.md has every argument of diffusers' call, and what it names here is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLControlNetPipeline

from controlnext.runtime import ImagePipeline
from controlnext.runtime.pipelines.pretrained import INSTEAD

TEXT = (Path(__file__).parents[2] / "docs" / "coming-from-diffusers.md").read_text()
_NAME = re.compile(r"`(\w+)`")
_EARLIER = {"enable_vae_tiling", "enable_vae_slicing"}
"""Attributes of diffusers' pipelines until it moved them to their VAEs."""
_ATTRIBUTE = re.compile(r"`(?:pipe\.)?(\w+)")


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


def test_attributes_of_diffusers_pipelines_are_told_and_refused() -> None:
    """Those of the table, which are diffusers' own, and no attribute of ours."""
    table = TEXT.partition("\n\nAround")[2].partition("###")[0]
    rows = [line.strip("| ").split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for there in rows for name in _ATTRIBUTE.findall(there)) == sorted(INSTEAD)
    parts = inspect.signature(StableDiffusionXLControlNetPipeline.__init__).parameters
    of_sd3 = inspect.signature(StableDiffusion3Pipeline.__init__).parameters
    for name in INSTEAD:
        known = name in parts or name in of_sd3 or name in _EARLIER
        assert known or hasattr(StableDiffusionXLControlNetPipeline, name), name
        assert not hasattr(ImagePipeline, name)


@pytest.mark.parametrize("name", ["scheduler", "to", "enable_model_cpu_offload"])
def test_an_attribute_of_diffusers_says_what_takes_its_place(name: str) -> None:
    pipe = object.__new__(ImagePipeline)
    told = f"ImagePipeline has no attribute '{name}'; what {name} is in diffusers is here "
    with pytest.raises(AttributeError, match=told):
        getattr(pipe, name)
    with pytest.raises(AttributeError, match=told):
        setattr(pipe, name, None)
    assert not hasattr(pipe, name)


def test_other_attributes_are_as_python_has_them() -> None:
    pipe = object.__new__(ImagePipeline)
    pipe.note = "mine"  # type: ignore[attr-defined]
    assert pipe.note == "mine"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"ImagePipeline has no attribute 'notes'$"):
        _ = pipe.notes  # type: ignore[attr-defined]
