"""A fake bundle that makes clips: graphs of a few operators, for servers in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from controlnext.families import get_family
from controlnext.tensor_spec import TensorSpec
from support.fake_bundle import write_graph
from support.fake_vae import Nodes, vae_decoder, vae_encoder
from support.idle_clips import SIZES, clip_tensors, write_clip_manifest


def write_fake_clips(directory: Path) -> Path:
    """Write a bundle of the clip family to ``directory`` and return it."""
    bodies = {
        "image_encoder": _image_encoder,
        "vae_decoder": vae_decoder,
        "vae_encoder": vae_encoder,
        "unet": _denoiser,
    }
    for spec in get_family("svd").graphs:
        if not spec.optional:
            write_graph(directory / spec.name, bodies[spec.name], *clip_tensors(spec))
    write_clip_manifest(directory)
    return directory


def _image_encoder(_inputs: list[TensorSpec], _outputs: list[TensorSpec]) -> Nodes:
    """Return nodes that give the mean of the pixels as every entry."""
    nodes = [
        ("ReduceMean", ["pixel_values", "pixels"], ["mean"], {"keepdims": 0}),
        ("Reshape", ["mean", "column"], ["means"], {}),
        ("Tile", ["means", "entries"], ["image_embeds"], {}),
    ]
    entries = [1, SIZES["image_encoder"]["projection_dim"]]
    return nodes, {"pixels": np.array([1, 2, 3]), "column": np.array([-1, 1]), "entries": np.array(entries)}


def _denoiser(_inputs: list[TensorSpec], _outputs: list[TensorSpec]) -> Nodes:
    """Return nodes that take half of the latents for noise."""
    nodes = [
        ("Slice", ["sample", "start", "end", "axis"], ["latents"], {}),
        ("Mul", ["latents", "half"], ["noise_pred"], {}),
    ]
    arrays = {"start": np.array([0]), "end": np.array([4]), "axis": np.array([2])}
    return nodes, {**arrays, "half": np.float32(0.5)}
