"""The runtime: from a bundle and a prompt to pictures, with NumPy and an engine."""

from __future__ import annotations

from controlnext.runtime.denoise import Step
from controlnext.runtime.pipeline import Output, Pipeline
from controlnext.runtime.request import Request

__all__ = ["Output", "Pipeline", "Request", "Step"]
