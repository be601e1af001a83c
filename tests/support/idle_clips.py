"""A video pipeline without graphs, with plain functions in place of its engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import SCHEMA, Graph, Manifest, TensorEntry, write_manifest
from controlnext.engines import Backend, Engine
from controlnext.families import get_family
from controlnext.families.graph_spec import GraphSpec
from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.tensor_spec import TensorSpec, bind
from controlnext.types import Feed

Answer = Callable[[str, Feed, tuple[int, ...]], np.ndarray]
"""Function of a graph's name, inputs and output shape that returns its output."""

SIZES = {
    "image_encoder": {"image_size": 28, "projection_dim": 6},
    "vae_decoder": {"latent_channels": 4},
    "vae_encoder": {"moments": 8},
    "unet": {"cross_attention_dim": 6, "ids": 3},
}
SCALING = 0.5
SCHEDULER = {
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


class IdleBackend(Backend):
    """A backend whose engines check their inputs; ``answer`` returns the outputs."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:  # noqa: ARG002
        return _IdleEngine(manifest, graph_name, self.answer)


class _IdleEngine(Engine):
    def __init__(self, manifest: Manifest, graph_name: str, answer: Answer) -> None:
        super().__init__(manifest, graph_name)
        self._answer = answer

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        (output,) = self.outputs
        shape = output.shape_at(bind(self.inputs, feed, self.graph_name))
        return {output.name: np.broadcast_to(self._answer(self.graph_name, feed, shape), shape)}

    def _close(self) -> None:
        pass


def idle_pipeline(directory: Path, answer: Answer, variant: str = "v2") -> Pipeline:
    """Make a bundle in ``directory`` and return its pipeline."""
    write_clip_manifest(directory, variant)
    return open_idle(directory, answer)


def open_idle(directory: Path, answer: Answer) -> Pipeline:
    """Return the pipeline of such a bundle."""
    return Pipeline.of(Bundle(directory, IdleBackend(answer), cache=False))


def clip_tensors(spec: GraphSpec) -> list[list[TensorSpec]]:
    """Return the inputs and the outputs of a graph of the bundle."""
    return [[tensor.resolve(SIZES[spec.name]) for tensor in side] for side in (spec.inputs, spec.outputs)]


def write_clip_manifest(directory: Path, variant: str = "v2") -> None:
    """Write the manifest of a bundle whose graphs, if there are any, are in ``directory``."""
    family = get_family("svd")
    graphs = {}
    for spec in family.graphs:
        if spec.optional:
            continue
        sides = [[TensorEntry.of(tensor) for tensor in side] for side in clip_tensors(spec)]
        graphs[spec.name] = Graph(spec.network, "fp32", *sides)
    (directory / "scheduler").mkdir(parents=True)
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    manifest = Manifest(
        schema=SCHEMA,
        family=family.name,
        variant=variant,
        precision="fp32",
        graphs=graphs,
        configs={
            "vae": {"scaling_factor": SCALING},
            "unet": {"sample_size": 64, "num_frames": 14},
            "image_encoder": {},
            "control": {"out_channels": 8},
        },
        options=dict(family.checkpoint_options),
        sources=[],
        tools={},
        files=list_files(directory),
    )
    write_manifest(directory, manifest)


def no_noise(graph_name: str, feed: Feed, _shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, except for the decoder: the first three channels of the latents."""
    if graph_name != "vae_decoder":
        return np.zeros((), np.float32)
    return feed["latent_sample"][:, :3].repeat(8, 2).repeat(8, 3)
