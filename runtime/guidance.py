"""Classifier-free guidance: its steps, its arithmetic, and the embedding that takes its place."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from controlnext.tensor_spec import TensorSpec
from controlnext.types import FloatArray

EMBEDDING = "timestep_cond"
"""The denoiser's input for the guidance embedding, which distilled denoisers have in place of guidance."""


def is_guided(scale: float, inputs: Container[str]) -> bool:
    """Return whether a run of this guidance scale has an unconditional half.

    As in diffusers above 1, but for a denoiser whose ``inputs`` have an embedding in place of guidance.
    """
    return scale > 1 and EMBEDDING not in inputs


def guide(noise: FloatArray, scale: float | FloatArray | None) -> FloatArray:
    """Return the noise after classifier-free guidance (arXiv:2207.12598), in diffusers' form.

    For a batch with the unconditional half first it is ``uncond + scale * (cond - uncond)``. If ``scale`` is
    None, the noise is returned unchanged.
    """
    if scale is None:
        return noise
    unconditional, conditional = np.split(noise, 2)
    return unconditional + scale * (conditional - unconditional)


def guided_steps(total: int, end: float) -> int:
    """Return how many of ``total`` steps are guided if guidance ends at ``end`` of the run, 0 to 1.

    As with diffusers' cut-off callback, which runs after step ``int(total * end)``, counted from 0: that one
    is guided still, so at least one is.
    """
    return min(int(total * end) + 1, total)


def guidance_embedding(scale: float, width: int, rows: int) -> FloatArray:
    """Return the embedding (rows, width) float32 of a guidance scale, the same in all rows.

    Sines, then cosines, of ``1000 * (scale - 1)`` times frequencies from 1 to 1e-4, and a zero for an odd
    ``width``: diffusers' ``get_guidance_scale_embedding``, which follows arXiv:2107.00630's code.
    """
    half = width // 2
    # rounded to float32 where diffusers rounds: the angles are large
    spacing = np.log(np.float32(10000)) / np.float32(half - 1)
    frequencies = np.exp((np.arange(half, dtype=np.float32) * -spacing).astype(np.float64)).astype(np.float32)
    angles = (np.float32(scale - 1) * np.float32(1000) * frequencies).astype(np.float64)
    values = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return np.tile(values.astype(np.float32), (rows, 1))


def embedding_input(inputs: Mapping[str, TensorSpec], scale: float, rows: int) -> dict[str, FloatArray]:
    """Return the denoiser's input for the guidance scale, if it is a distilled one that has it."""
    if EMBEDDING not in inputs:
        return {}
    width = inputs[EMBEDDING].shape[1]
    assert isinstance(width, int)
    return {EMBEDDING: guidance_embedding(scale, width, rows)}
