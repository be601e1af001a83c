"""The runtime: makes images and clips from a bundle and a prompt, with NumPy and an engine."""

from __future__ import annotations

from controlnext.runtime.batching import Batcher
from controlnext.runtime.denoise import Step
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.pipelines.image import ImagePipeline, Output
from controlnext.runtime.pipelines.video import VideoOutput, VideoPipeline
from controlnext.runtime.request import Request, VideoRequest

__all__ = [
    "Batcher",
    "ImagePipeline",
    "Output",
    "Pipeline",
    "Request",
    "Step",
    "VideoOutput",
    "VideoPipeline",
    "VideoRequest",
]
