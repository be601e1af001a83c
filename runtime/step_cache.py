"""The step cache: full steps at an interval, shallow ones between, and the memory of what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from controlnext.engines import Engine
from controlnext.engines.steps import StepKind
from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.types import Feed

MOST_BYTES = 4 << 30
"""The most memory for the features of a run: those of an image take 42 MB at most families' own size, those
of a window of a clip 300 MB."""


def step_kind(index: int, total: int, interval: int) -> StepKind:
    """Return the kind of a step, of ``total``, with this ``cache_interval``."""
    if interval == 1:
        return StepKind.PLAIN
    if index % interval:
        return StepKind.SHALLOW
    # the last step has none after it that could take over features
    return StepKind.FULL if index + 1 < total else StepKind.PLAIN


def open_step_cache(
    bundle: Bundle, interval: int, size: tuple[int, int], parts: Sequence[Mapping[str, int]]
) -> None:
    """Get the denoiser ready for a run with this ``cache_interval``.

    ``size``: height and width in pixels. ``parts``: the other sizes of each batch of a step, by the symbols
    of the denoiser's inputs.

    Raises:
        InputError: the bundle or the backend has no step cache, or the run would keep too much.
    """
    if interval == 1:
        return
    engine = bundle.engine(bundle.family.denoiser)
    engine.open_shallow()
    multiple = bundle.family.size_multiple
    height, width = (side // multiple for side in size)
    kept = sum(feature_bytes(engine, {**part, "height": height, "width": width}) for part in parts)
    if kept > MOST_BYTES:
        raise InputError(
            f"`cache_interval` {interval} would keep {kept / 1e9:.1f} GB of features, but at most"
            f" {MOST_BYTES / 1e9:.1f} GB are kept; set it to 1, or make fewer or smaller images or frames",
            argument="cache_interval",
        )


def feature_bytes(engine: Engine, sizes: Mapping[str, int]) -> int:
    """Return the bytes of the features of a batch of these ``sizes``."""
    return sum(math.prod(spec.shape_at(sizes)) * np.dtype(spec.dtype).itemsize for spec in engine.features)


def conditional_rows(features: Feed) -> Feed:
    """Return the second half of the rows of guided features."""
    return {name: array[len(array) // 2 :] for name, array in features.items()}


def join_rows(outputs: Sequence[Feed]) -> dict[str, np.ndarray]:
    """Return the outputs for the rows of a batch that ran in several runs."""
    first, *others = outputs
    if not others:
        return dict(first)
    return {name: np.concatenate([rows, *(other[name] for other in others)]) for name, rows in first.items()}
