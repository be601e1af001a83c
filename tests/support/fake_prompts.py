"""Fake bundles that take image prompts."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import Graph, ImagePrompt, TensorEntry, write_manifest
from controlnext.bundle.reader import read_manifest
from controlnext.families import get_family
from controlnext.image_prompts import IMAGE_ENCODER, KINDS
from controlnext.tensor_spec import TensorSpec
from support.fake_bundle import Nodes, _body, write_fake_bundle, write_graph

_SIZES = {"image_size": 8, "projection_dim": 3, "positions": 1, "hidden_size": 3}


def write_fake_prompts(directory: Path, count: int = 1) -> Path:
    """Write a bundle with ``count`` IP-Adapters, whose denoiser adds the mean of each of its inputs."""
    write_fake_bundle(directory)
    manifest = read_manifest(directory)
    family = get_family(manifest.family)
    graph = manifest.graphs[family.denoiser]
    adapters = [ImagePrompt("base", 4, [3])] * count
    (spec,) = (spec for spec in family.graphs if spec.name == family.denoiser)
    added = spec.with_image_prompts([adapter.embedding for adapter in adapters]).inputs[len(spec.inputs) :]
    inputs, outputs = ([tensor.spec() for tensor in side] for side in (graph.inputs, graph.outputs))
    shutil.rmtree(directory / family.denoiser)
    write_graph(directory / family.denoiser, _body(family.denoiser), [*inputs, *added], outputs)
    entries = [*graph.inputs, *map(TensorEntry.of, added)]
    graphs = {
        **manifest.graphs,
        family.denoiser: msgspec.structs.replace(graph, inputs=entries, image_prompts=adapters),
        IMAGE_ENCODER: _encoder(directory),
    }
    configs = {**manifest.configs, IMAGE_ENCODER: {}}
    files = list_files(directory)
    write_manifest(directory, msgspec.structs.replace(manifest, graphs=graphs, configs=configs, files=files))
    return directory


def _encoder(directory: Path) -> Graph:
    (spec,) = (spec for spec in get_family("sdxl").graphs if spec.name == IMAGE_ENCODER)
    sides = [[tensor.resolve(_SIZES) for tensor in side] for side in (spec.inputs, spec.outputs)]
    write_graph(directory / IMAGE_ENCODER, _image_encoder, *sides)
    return Graph(IMAGE_ENCODER, "fp32", *([TensorEntry.of(tensor) for tensor in side] for side in sides))


def _image_encoder(_inputs: list[TensorSpec], _outputs: list[TensorSpec]) -> Nodes:
    """Return nodes that give the mean of each channel of the pixels."""
    base, plus = (kind.output for kind in KINDS.values())
    nodes = [
        ("ReduceMean", ["pixel_values", "inside"], [base], {"keepdims": 0}),
        ("Unsqueeze", [base, "position"], [plus], {}),
    ]
    return nodes, {"inside": np.array([2, 3]), "position": np.array([1])}


def colours(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Return an image of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)
