"""Many requests of one pipeline at once, batched at the granularity of a denoising step."""

from __future__ import annotations

from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.batching.observer import Observer, Phase

__all__ = ["Batcher", "Observer", "Phase"]
