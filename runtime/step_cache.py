"""The step cache: full steps at an interval, shallow ones between, and the memory of what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from controlnext.engines import Engine
from controlnext.errors import InputError

MOST_BYTES = 4 << 30
"""The most memory for the features of a run: those of an image take 42 MB at most families' own size, those
of a window of a clip 300 MB."""


def open_step_cache(engine: Engine, interval: int, parts: Sequence[Mapping[str, int]]) -> None:
    """Get the denoiser's ``engine`` ready for a run with this ``cache_interval``.

    ``parts``: the sizes of each batch of a step, by the symbols of the engine's tensors.

    Raises:
        InputError: the bundle or the backend has no step cache, or the run would keep too much.
    """
    if interval == 1:
        return
    engine.open_shallow()
    kept = sum(feature_bytes(engine, sizes) for sizes in parts)
    if kept > MOST_BYTES:
        raise InputError(
            f"`cache_interval` {interval} would keep {kept / 1e9:.1f} GB of features for {len(parts)} batches a"
            f" step; at most {MOST_BYTES / 1e9:.1f} GB are kept: set it to 1, or make fewer frames or images,"
            " or smaller ones",
            argument="cache_interval",
        )


def feature_bytes(engine: Engine, sizes: Mapping[str, int]) -> int:
    """Return the bytes of the features of a batch of these ``sizes``."""
    return sum(math.prod(spec.shape_at(sizes)) * np.dtype(spec.dtype).itemsize for spec in engine.features)
