"""The graphs of a VAE of fake bundles: a few operators each."""

from __future__ import annotations

import numpy as np

from controlnext.tensor_spec import TensorSpec

Nodes = tuple[list[tuple[str, list[str], list[str], dict[str, object]]], dict[str, np.ndarray]]


def vae_decoder(_inputs: list[TensorSpec], _outputs: list[TensorSpec]) -> Nodes:
    """Return nodes that show the first three channels of the latents."""
    nodes = [
        ("Slice", ["latent_sample", "start", "end", "axis"], ["three"], {}),
        ("Resize", ["three", "", "scales"], ["sample"], {"mode": "nearest"}),
    ]
    arrays = {"start": np.array([0]), "end": np.array([3]), "axis": np.array([1])}
    return nodes, {**arrays, "scales": np.array([1, 1, 8, 8], np.float32)}


def vae_encoder(_inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Nodes:
    """Return nodes that scale the image down and repeat its channels."""
    moments = outputs[0].shape[1]
    assert isinstance(moments, int)
    copies = ["small"] * (moments // 3 + 1)
    nodes = [
        ("AveragePool", ["sample"], ["small"], {"kernel_shape": [8, 8], "strides": [8, 8]}),
        ("Concat", copies, ["copies"], {"axis": 1}),
        ("Slice", ["copies", "start", "end", "axis"], ["latent_parameters"], {}),
    ]
    return nodes, {"start": np.array([0]), "end": np.array([moments]), "axis": np.array([1])}
