"""docs/coming-from-diffusers.md has every argument of diffusers' call, and what it names here is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableVideoDiffusionPipeline,
)

from controlnext.errors import InputError
from controlnext.runtime import ImagePipeline, Pipeline, VideoPipeline
from controlnext.runtime.pipelines.diffusers_names import ARGUMENTS, CLIP_ARGUMENTS, INSTEAD, LOADING

TEXT = (Path(__file__).parents[2] / "docs" / "coming-from-diffusers.md").read_text()
_NAME = re.compile(r"`(\w+)`")
_OTHERS = {"enable_vae_tiling", "disable_vae_tiling", "enable_vae_slicing", "image_processor"}
"""Attributes that diffusers' pipelines have had until it moved them to their VAEs, or that instances have."""
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


def test_the_table_of_clips_has_what_differs() -> None:
    table = TEXT.partition("### Clips")[2].partition("\n\nIn place")[0]
    told = {name for row in table.splitlines() for name in _NAME.findall(row.partition(" | ")[0])}
    theirs = inspect.signature(StableVideoDiffusionPipeline.__call__).parameters
    lacking = {*theirs} - {*inspect.signature(VideoPipeline.__call__).parameters}
    assert told - {"StableVideoDiffusionPipeline"} == lacking
    assert lacking <= {*CLIP_ARGUMENTS}
    assert not {*CLIP_ARGUMENTS} & {*inspect.signature(VideoPipeline.__call__).parameters}


def test_attributes_of_diffusers_pipelines_are_told_and_refused() -> None:
    """Those of the table, which are diffusers' own, and no attribute of ours."""
    table = TEXT.partition("\n\nAround")[2].partition("###")[0]
    rows = [line.strip("| ").split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for there in rows for name in _ATTRIBUTE.findall(there)) == sorted(INSTEAD)
    theirs = StableDiffusion3Pipeline, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
    parts = {name for kind in theirs for name in inspect.signature(kind.__init__).parameters}
    for name in INSTEAD:
        known = name in parts or name in _OTHERS
        assert known or hasattr(StableDiffusionXLControlNetPipeline, name), name
        assert not hasattr(ImagePipeline, name)


@pytest.mark.parametrize("name", ["scheduler", "to", "enable_model_cpu_offload"])
def test_an_attribute_of_diffusers_says_what_takes_its_place(name: str) -> None:
    pipe = object.__new__(ImagePipeline)
    told = f"ImagePipeline has no attribute '{name}'; in place of diffusers' {name}: "
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


def test_every_argument_that_a_call_lacks_says_what_takes_its_place() -> None:
    """Of diffusers' call; and none is told of that a call has."""
    theirs = inspect.signature(StableDiffusionXLControlNetPipeline.__call__).parameters
    ours = inspect.signature(ImagePipeline.__call__).parameters
    assert {*theirs} - {*ours, "kwargs"} <= {*ARGUMENTS}
    assert not {*ARGUMENTS} & {*ours, *inspect.signature(VideoPipeline.__call__).parameters}
    assert not {*LOADING} & {*inspect.signature(ImagePipeline.load).parameters}


@pytest.mark.parametrize("method", ["__call__", "stream"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"controlnet_conditioning_scale": 1},
            "in place of diffusers' controlnet_conditioning_scale: c",
        ),
        (
            {"guidance_scal": 1},
            r"got an unexpected keyword argument 'guidance_scal'; did you mean guid",
        ),
        ({"zzz": 1}, "got an unexpected keyword argument 'zzz'$"),
        ({"steps": 1}, r"'steps'; did you mean num_inference_steps\?"),
        ({"num_images": 1}, r"'num_images'; did you mean num_images_per_prompt\?"),
    ],
)
def test_an_argument_that_a_call_lacks(method: str, given: dict[str, Any], words: str) -> None:
    pipe = object.__new__(ImagePipeline)
    with pytest.raises(TypeError, match=words):
        getattr(pipe, method)("a prompt", **given)


@pytest.mark.parametrize("name", ["prompt", "guidance_scale", "control_image", "fps"])
def test_an_argument_of_images_that_a_clip_lacks(name: str) -> None:
    with pytest.raises(TypeError, match=f"in place of diffusers' {name}: "):
        object.__new__(VideoPipeline)(**{name: 1})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"license": "mit"}, "in place of diffusers' license: licence$"),
        ({"max_shard_size": "5GB"}, "nothing: files are sent as they are"),
        ({"licens": "mit"}, r"did you mean licence\?"),
    ],
)
@pytest.mark.parametrize("method", ["push_to_hub", "save_pretrained"])
def test_an_argument_that_sharing_lacks(method: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        getattr(object.__new__(ImagePipeline), method)("me/name", **given)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"dtype": "float16"}, InputError, "dtype is float16, but a bundle has its own precision"),
        ({"variant": "fp16"}, TypeError, r"Pipeline.from_pretrained\(\) got .*: a bundle of that precision"),
        ({"provder": "cuda"}, TypeError, "did you mean provider"),
    ],
)
def test_an_argument_that_loading_lacks(given: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Pipeline.from_pretrained("owner/name", **given)
