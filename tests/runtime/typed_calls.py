"""Calls of the pipelines for a type checker; ``make lint`` checks this file, nothing runs it.

A line with ``type: ignore`` has to be an error: the check reports an ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type

from controlnext.runtime import ImagePipeline, Output, Pipeline, Step, VideoOutput, VideoPipeline


def images(control: Any) -> None:
    with ImagePipeline.load("build/sdxl") as pipe:
        assert_type(pipe, ImagePipeline)
        assert_type(pipe("a red circle", control_image=control, seed=1), Output)
        assert_type(pipe.stream(prompt="a red circle", control_image=control), Iterator[Step])
        pipe("a red circle", control_images=[control])  # type: ignore[call-arg]
        pipe("a red circle", control_image=control, seed="1")  # type: ignore[arg-type]
        pipe("a red circle", None, control, 0.5)  # type: ignore[call-arg]


def clips(control: Any) -> None:
    pipe = VideoPipeline.load("build/svd", "onnxruntime", "cpu")
    assert_type(pipe, VideoPipeline)
    assert_type(pipe(control, control_images=[control], num_frames=14), VideoOutput)
    pipe(control, control_images=[control], prompt="a red circle")  # type: ignore[call-arg]


def either(control: Any) -> None:
    assert_type(Pipeline.load("build/sdxl"), Pipeline)
    Pipeline.load("build/sdxl")("a red circle", control_image=control)
