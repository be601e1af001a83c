"""The runtime: from a bundle and a prompt to pictures or clips, with NumPy and an engine."""

from __future__ import annotations

from controlnext.runtime.denoise import Step
from controlnext.runtime.pipeline import Pipeline
from controlnext.runtime.pipelines.image import Output
from controlnext.runtime.pipelines.video import VideoOutput
from controlnext.runtime.request import Request, VideoRequest

__all__ = ["Output", "Pipeline", "Request", "Step", "VideoOutput", "VideoRequest"]
