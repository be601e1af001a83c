"""The pipelines' signatures: in step with the requests that check the arguments; each for its own bundles."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from controlnext.errors import InputError
from controlnext.families import FAMILIES
from controlnext.runtime import ImagePipeline, Pipeline, Request, VideoPipeline, VideoRequest
from controlnext.runtime.pipelines import image, video
from support.fake_bundle import write_fake_bundle
from support.idle_clips import idle_pipeline, no_noise

CALLS = [
    (method, request)
    for pipeline, request in ((ImagePipeline, Request), (VideoPipeline, VideoRequest))
    for method in (pipeline.__call__, pipeline.stream)
]


def _arguments(callable_: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    """Name, kind, default and type of every argument, in order."""
    hints = get_type_hints(callable_ if inspect.isfunction(callable_) else callable_.__init__)
    return [
        (name, parameter.kind, parameter.default, hints[name])
        for name, parameter in inspect.signature(callable_).parameters.items()
        if name != "self"
    ]


@pytest.mark.parametrize(("method", "request_class"), CALLS)
def test_a_call_takes_exactly_what_its_request_holds(method: Any, request_class: Any) -> None:
    assert _arguments(method) == _arguments(request_class)


@pytest.mark.parametrize(("method", "request_class"), CALLS)
def test_every_argument_of_a_call_reaches_the_request(
    method: Any, request_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, pipeline = (image, ImagePipeline) if request_class is Request else (video, VideoPipeline)
    given = {name: object() for name, *_ in _arguments(method)}
    received: dict[str, object] = {}
    monkeypatch.setattr(module, request_class.__name__, lambda **values: received.update(values))
    monkeypatch.setattr(pipeline, "_run", lambda _self, _request: (None, None))
    monkeypatch.setattr(pipeline, "steps", lambda _self, _request: None)
    method(object.__new__(pipeline), **given)
    assert received == given


@pytest.mark.parametrize("pipeline", [ImagePipeline, VideoPipeline])
def test_the_documentation_of_a_call_names_every_argument(pipeline: type[Pipeline]) -> None:
    documented = inspect.getdoc(pipeline) or ""
    listed = documented[documented.index("Args:") :]
    names = {name.strip() for line in listed.splitlines() for name in line.partition(":")[0].split(",")}
    assert set(inspect.signature(pipeline.__call__).parameters) - {"self"} <= names


def test_a_bundle_is_loaded_as_the_pipeline_of_its_family(tmp_path: Path) -> None:
    images = write_fake_bundle(tmp_path / "images")
    with Pipeline.load(images, cache=False) as pipe:
        assert type(pipe) is ImagePipeline
    with ImagePipeline.load(images, cache=False) as pipe:
        assert type(pipe) is ImagePipeline


def test_a_bundle_for_another_pipeline_is_refused(tmp_path: Path) -> None:
    images = write_fake_bundle(tmp_path / "images")
    with pytest.raises(InputError, match="VideoPipeline does not accept it; load it with ImagePipeline"):
        VideoPipeline.load(images)
    clips = idle_pipeline(tmp_path / "clips", no_noise).bundle
    with pytest.raises(InputError, match="ImagePipeline does not accept it; load it with VideoPipeline"):
        ImagePipeline.of(clips)


def test_there_is_a_pipeline_for_the_task_of_every_family() -> None:
    assert {family.task for family in FAMILIES.values()} <= set(Pipeline._of_task)
