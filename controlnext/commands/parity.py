"""How far the engine is from PyTorch: every graph by itself, then a whole sampling run."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from controlnext.commands.console import Report
from controlnext.engines import open_engine
from controlnext.export.networks import wrap
from controlnext.manifest import Graph, Manifest, ParityRow, read_manifest
from controlnext.reference import ReferencePipeline
from controlnext.registry import GraphSpec, get_family
from controlnext.runtime import Pipeline
from controlnext.specs import TensorSpec
from controlnext.weights import Checkpoint

Arrays = dict[str, np.ndarray]
Feeds = Mapping[str, Sequence[Arrays]]


@dataclass(frozen=True)
class Limits:
    """What is allowed: relative L2 of a graph's outputs and of a run's latents, PSNR in dB of its picture."""

    graph: float
    latents: float
    picture: float


# With room above the worst that was measured on the tiny models of the tests and the small trained one.
# A sampling run feeds every step's error into the next and guidance multiplies it: its latents differ more.
LIMITS = {
    # sums in another order: 4e-6 a graph, 2e-5 a run, 100 dB
    "fp32": Limits(graph=1e-4, latents=2e-4, picture=60),
    # 11 bits a number: 1.9e-3 a graph, 2.2e-3 a run, 76 dB
    "fp16": Limits(graph=4e-3, latents=1e-2, picture=40),
}

# Neither is a size at which graphs are traced.
SIZES = (
    {"batch": 1, "control_batch": 1, "height": 24, "width": 16, "sequence": 77},
    {"batch": 2, "control_batch": 2, "height": 12, "width": 20, "sequence": 33},
)
SEED = 0

# The denoiser's inputs that come from a prompt, and the pipelines' arguments for them.
EMBEDDINGS = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}


@dataclass(frozen=True)
class SamplingRun:
    """What a whole run is compared on. Where the prompt is None, random embeddings take its place."""

    prompt: str | None
    control_image: Image.Image
    steps: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.steps} steps {self.width}x{self.height}"


@dataclass(frozen=True)
class Comparison:
    """The parity table, and the picture (H, W, 3) in [0, 1] as PyTorch and as the engine made it."""

    rows: list[ParityRow]
    pytorch: np.ndarray
    engine: np.ndarray


def measure(bundle: Path, checkpoint: Checkpoint, progress: Report) -> list[ParityRow]:
    """The parity table of the bundle in folder ``bundle`` against PyTorch with ``checkpoint``'s weights."""
    return compare(bundle, checkpoint, default_run(read_manifest(bundle)), progress).rows


def compare(bundle: Path, checkpoint: Checkpoint, run: SamplingRun, progress: Report) -> Comparison:
    """Run PyTorch, then the engine, on the same inputs: the first is freed before the second opens."""
    manifest = read_manifest(bundle)
    feeds = {
        folder: [_feed(manifest, graph, sizes) for sizes in SIZES]
        for folder, graph in manifest.graphs.items()
    }
    arguments = _arguments(manifest, run)
    wanted = _pytorch(checkpoint, feeds, arguments, progress)
    gc.collect()
    found = _engine(bundle, manifest, feeds, arguments, progress)
    rows = [
        _row(f"{folder}: {output.name}", "relative L2", _worst(wanted, found, folder, output.name), limit)
        for folder, graph in manifest.graphs.items()
        for output in graph.outputs
        for limit in [LIMITS[graph.precision].graph]
    ]
    limits = LIMITS[manifest.precision]
    rows += [
        _row(f"latents, {run}", "relative L2", _relative(wanted.latents, found.latents), limits.latents),
        _row(f"picture, {run}", "PSNR in dB", psnr(wanted.picture, found.picture), limits.picture, True),
    ]
    return Comparison(rows, wanted.picture, found.picture)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; equal ones have 200."""
    error = np.mean(np.square(a.astype(np.float64) - b))
    return float(-10 * np.log10(np.maximum(error, 1e-20)))


@dataclass(frozen=True)
class _Outputs:
    graphs: dict[str, list[Arrays]]
    latents: np.ndarray
    picture: np.ndarray


@torch.no_grad()
def _pytorch(checkpoint: Checkpoint, feeds: Feeds, arguments: dict[str, Any], progress: Report) -> _Outputs:
    reference = ReferencePipeline(checkpoint)
    specs = {spec.folder: spec for spec in checkpoint.family.graphs}
    graphs = {}
    for done, (folder, given) in enumerate(feeds.items()):
        progress(f"{folder}: PyTorch", done / len(feeds) / 2)
        spec = specs[folder]
        network, control = reference.modules[spec.network], reference.modules["control"]
        module = wrap(spec, network, control, checkpoint.variant.injection)
        graphs[folder] = [_forward(module, spec, feed) for feed in given]
    progress("sampling run: PyTorch", 0.5)
    output = reference(**arguments)
    return _Outputs(graphs, output.latents, output.images[0])


def _forward(module: nn.Module, spec: GraphSpec, feed: Arrays) -> Arrays:
    outputs = module(*(torch.from_numpy(feed[tensor.name]) for tensor in spec.inputs))
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    return {tensor.name: output.numpy() for tensor, output in zip(spec.outputs, tensors, strict=True)}


def _engine(
    bundle: Path, manifest: Manifest, feeds: Feeds, arguments: dict[str, Any], progress: Report
) -> _Outputs:
    graphs = {}
    for done, (folder, given) in enumerate(feeds.items()):
        progress(f"{folder}: engine", 0.5 + done / len(feeds) / 2)
        with open_engine(bundle, manifest, folder, cache=False) as engine:
            graphs[folder] = [engine.run(feed) for feed in given]
    progress("sampling run: engine", 1.0)
    with Pipeline.load(bundle, cache=False) as pipeline:
        output = pipeline(**arguments, output_type="np")
    return _Outputs(graphs, output.latents, np.asarray(output.images)[0])


def _feed(manifest: Manifest, graph: Graph, sizes: Mapping[str, int]) -> Arrays:
    """Seeded inputs of one graph where its symbols have the given sizes."""
    generator = np.random.default_rng(SEED)
    config = manifest.configs[graph.network]
    return {
        tensor.name: _values(tensor.spec(), tensor.spec().shape_at(sizes), config, generator)
        for tensor in graph.inputs
    }


def _values(
    spec: TensorSpec, shape: tuple[int, ...], config: Mapping[str, Any], generator: np.random.Generator
) -> np.ndarray:
    values: np.ndarray
    match spec.name:
        case "input_ids":
            values = generator.integers(0, config["vocab_size"], shape)
        case "timestep":
            # one time for the whole batch, as in every sampling step
            values = np.full(shape, generator.integers(1, 1000))
        case "control_image":
            values = generator.random(shape)
        case "control_scale":
            values = generator.uniform(0.3, 1.0, shape)
        case "time_ids":
            values = generator.integers(0, 1024, shape)
        case _:
            values = generator.standard_normal(shape)
    return values.astype(spec.dtype)


def _arguments(manifest: Manifest, run: SamplingRun) -> dict[str, Any]:
    """The arguments that the reference pipeline and the runtime's pipeline both take."""
    arguments = {
        "control_image": run.control_image,
        "num_inference_steps": run.steps,
        "height": run.height,
        "width": run.width,
        "seed": SEED,
    }
    words = _random_embeddings(manifest) if run.prompt is None else {"prompt": run.prompt}
    return {**arguments, **words}


def _random_embeddings(manifest: Manifest) -> Arrays:
    generator = np.random.default_rng(SEED)
    embeddings = {}
    for tensor in manifest.graphs[get_family(manifest.family).denoiser].inputs:
        if tensor.name in EMBEDDINGS:
            shape = tensor.spec().shape_at({"batch": 1, "sequence": 77})
            for name in (EMBEDDINGS[tensor.name], f"negative_{EMBEDDINGS[tensor.name]}"):
                embeddings[name] = generator.standard_normal(shape).astype(tensor.dtype)
    return embeddings


def _worst(wanted: _Outputs, found: _Outputs, folder: str, output: str) -> float:
    pairs = zip(wanted.graphs[folder], found.graphs[folder], strict=True)
    # not Python's max: it may drop a NaN
    return float(np.max([_relative(a[output], b[output]) for a, b in pairs]))


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    """``|found - wanted| / |wanted|``, both as vectors; NaN where either is not finite."""
    wanted = wanted.astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _row(name: str, metric: str, value: float, limit: float, at_least: bool = False) -> ParityRow:
    # two digits: equal exports have equal manifests although threads may add in another order
    return ParityRow(name, metric, float(f"{value:.1e}"), limit, at_least)


def default_run(manifest: Manifest) -> SamplingRun:
    """A short run at a small size: on a full-size model it takes about a minute on a processor."""
    size = 128
    picture = Image.new("RGB", (size, size))
    ImageDraw.Draw(picture).ellipse((24, 32, 96, 104), outline="white", width=2)
    reads_prompts = set(get_family(manifest.family).prompt_encoders) <= set(manifest.graphs)
    prompt = "a red circle on a blue background" if reads_prompts else None
    return SamplingRun(prompt, picture, steps=6, height=size, width=size)
