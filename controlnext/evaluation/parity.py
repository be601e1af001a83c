"""Parity of engines with PyTorch: each graph alone, then a whole sampling run.

ONNX Runtime's engines are always compared, built TensorRT engines if they can run on this machine, other
backends if they are asked for. An export asks for none: equal exports have equal manifests.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn

from controlnext.bundle.manifest import Manifest, ParityRow
from controlnext.bundle.reader import read_manifest
from controlnext.bundle.scratch import temporary_directory
from controlnext.engines import registry, select_backend
from controlnext.engines.auto import AutoBackend
from controlnext.engines.built import BuiltBackend, usable_backends
from controlnext.evaluation.inputs import (
    SEED,
    SamplingRun,
    added_words,
    default_run,
    fit_run,
    graph_feeds,
    run_arguments,
)
from controlnext.evaluation.lora_reference import merge_random_lora, write_random_lora
from controlnext.evaluation.metrics import psnr, relative_l2
from controlnext.evaluation.random_lora import NAME
from controlnext.export.adapters import wrap
from controlnext.families import GraphSpec, get_family
from controlnext.families.schema import PREVIEW_DECODER, VAE_ENCODER
from controlnext.models.cross_normalization import CrossNormalization
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.types import Feed, Precision, Progress
from controlnext.weights import Checkpoint

Feeds = Mapping[str, Sequence[Feed]]
_FEW_STEPS = 4
"""Most steps of runs besides the first; with the step cache two full ones, each with a shallow one behind
it."""
_STRENGTH = 0.5
"""That of the run from an image, which takes half of its steps."""


@dataclass(frozen=True)
class Limits:
    """Limits of parity: relative L2 of a graph's outputs and of a run's latents, PSNR in dB of its image."""

    graph: float
    latents: float
    image: float


# Set above the largest errors measured on the tiny models of the tests and on the small trained model.
# A sampling run feeds every step's error into the next and guidance multiplies it: its latents differ more.
LIMITS: Mapping[Precision, Limits] = {
    # sums in another order: 4e-6 a graph, 2e-5 a run, 100 dB
    Precision.FP32: Limits(graph=1e-4, latents=2e-4, image=60),
    # 11 bits a number: 1.9e-3 a graph, 2.2e-3 a run, 76 dB
    Precision.FP16: Limits(graph=4e-3, latents=1e-2, image=40),
    Precision.INT8: Limits(graph=0.1, latents=0.35, image=20),
}
# 8 bits a number
_BF16 = Limits(graph=4e-2, latents=8e-2, image=30)
_LIMITS_OF_ROUNDING: Mapping[str, Mapping[Precision, Limits]] = {
    "": LIMITS,
    "bfloat16": {
        Precision.FP32: _BF16,
        Precision.FP16: _BF16,
        Precision.INT8: LIMITS[Precision.INT8],
    },
}
"""Limits by the type that a backend rounds to (``Backend.rounds_to``)."""


@dataclass(frozen=True)
class Comparison:
    """The rows of the parity table, and the last image (H, W, 3) in [0, 1] of PyTorch and of the engine."""

    rows: list[ParityRow]
    pytorch: np.ndarray
    engine: np.ndarray


def measure(bundle: Path, checkpoint: Checkpoint, progress: Progress) -> list[ParityRow]:
    """Return the parity table of ``bundle`` against PyTorch with the weights of ``checkpoint``."""
    manifest = read_manifest(bundle)
    run = default_run(manifest, added_words(bundle, manifest))
    return compare(bundle, checkpoint, run, progress).rows


def automatic_backends(manifest: Manifest) -> list[str]:
    """Return the names of the backends that ``auto`` takes on this machine in place of ONNX Runtime."""
    auto = AutoBackend()
    found = (auto.faster(graph.precision) for graph in manifest.graphs.values())
    return list(dict.fromkeys(backend.name for backend in found if backend))


def compare(
    bundle: Path,
    checkpoint: Checkpoint,
    run: SamplingRun,
    progress: Progress,
    others: Sequence[str] = (),
) -> Comparison:
    """Run PyTorch, then each backend, on the same inputs; PyTorch's memory is released before engines open.

    The sizes of the inputs, and of ``run``, are adjusted to what all engines accept. ``others``: backends
    that run the graphs themselves, to compare besides. Raises as :func:`controlnext.engines.select_backend`.
    """
    manifest = read_manifest(bundle)
    asked = {name: BuiltBackend(others=select_backend(name)) for name in others}
    backends = usable_backends(bundle, manifest)
    profiles = [backend.profiles for backend in backends.values()]
    feeds, run = graph_feeds(bundle, manifest, profiles), fit_run(manifest, run, profiles)
    runs = [run, *_other_runs(manifest, run)]
    arguments = [run_arguments(manifest, one) for one in runs]
    expected = _pytorch(manifest, checkpoint, feeds, arguments, progress)
    gc.collect()
    found = _engine(bundle, manifest, BuiltBackend(), feeds, arguments, progress)
    rows = _rows(manifest, runs, expected, found, LIMITS)
    for name, backend in {**backends, **asked}.items():
        outputs = _engine(bundle, manifest, backend, feeds, arguments, progress)
        limits = _LIMITS_OF_ROUNDING[registry.BACKENDS.get(name, AutoBackend).rounds_to]
        own = _rows(manifest, runs, expected, outputs, limits)
        rows += [replace(row, name=f"{name}: {row.name}") for row in own]
    return Comparison(rows, expected.images[-1], found.images[-1])


def _other_runs(manifest: Manifest, run: SamplingRun) -> list[SamplingRun]:
    """Return runs of few steps: one from an image, if the bundle can; with an image prompt, if it has
    IP-Adapters; with a LoRA, if it has room for it; and with the step cache, if the denoiser can be cut."""
    family, runs = get_family(manifest.family), []
    few = dataclasses.replace(run, steps=min(run.steps, _FEW_STEPS))
    denoiser = manifest.graphs[family.denoiser]
    if family.image_start is not None and VAE_ENCODER in manifest.graphs:
        runs.append(dataclasses.replace(few, steps=max(few.steps, 2), strength=_STRENGTH))
    if denoiser.adapters:
        runs.append(dataclasses.replace(few, image_prompt=True))
    if denoiser.lora:
        runs.append(dataclasses.replace(few, lora_rank=denoiser.lora.rank))
    if denoiser.shallow is not None:
        runs.append(dataclasses.replace(few, cache_interval=2))
    return runs


def _rows(
    manifest: Manifest,
    runs: Sequence[SamplingRun],
    expected: _Outputs,
    found: _Outputs,
    of_precision: Mapping[Precision, Limits],
) -> list[ParityRow]:
    rows = [
        _row(f"{name}: {output.name}", "relative L2", _worst(expected, found, name, output.name), limit)
        for name, graph in manifest.graphs.items()
        for output in graph.outputs
        for limit in [of_precision[graph.precision].graph]
    ]
    limits = of_precision[manifest.precision]
    # an engine that cannot be cut has no last run
    latents = [
        _row(f"latents, {run}", "relative L2", relative_l2(own, wanted), limits.latents)
        for run, own, wanted in zip(runs, found.latents, expected.latents, strict=False)
    ]
    decoded = {"image": (expected.images, found.images)}
    if PREVIEW_DECODER in manifest.graphs:
        decoded["preview"] = (expected.previews, found.previews)
    images = [
        _row(f"{name}, {runs[0]}", "PSNR in dB", psnr(*pair), limits.image, True)
        for name, pair in decoded.items()
    ]
    return [*rows, *latents, *images]


@dataclass(frozen=True)
class _Outputs:
    """Outputs of graphs and runs: the latents of each run, the images of the first."""

    graphs: Feeds
    latents: list[np.ndarray]
    images: np.ndarray
    previews: np.ndarray


@torch.no_grad()
def _pytorch(
    manifest: Manifest,
    checkpoint: Checkpoint,
    feeds: Feeds,
    arguments: Sequence[dict[str, Any]],
    progress: Progress,
) -> _Outputs:
    reference = reference_pipeline(checkpoint)
    specs = {spec.name: spec for spec in checkpoint.graphs}
    graphs = {}
    for done, (graph_name, inputs) in enumerate(feeds.items()):
        progress(f"{graph_name}: PyTorch", done / len(feeds) / 2)
        spec, room = specs[graph_name], manifest.graphs[graph_name].lora or None
        if room:
            spec = spec.with_loras(*room.columns)
        network = reference.modules[spec.network]
        normalization = CrossNormalization(checkpoint.variant.injection)
        adapters = [one.module() for one in checkpoint.adapters]
        module = wrap(spec, network, reference.controls, normalization, room=room, adapters=adapters)
        graphs[graph_name] = [_forward(module, spec, feed) for feed in inputs]
    progress("sampling run: PyTorch", 0.5)
    outputs = _runs(reference, manifest, arguments)
    latents = [output.latents for output in outputs]
    previews = reference.preview(latents[0]) if PREVIEW_DECODER in feeds else np.empty(0)
    return _Outputs(graphs, latents, _images(outputs[0]), previews)


def _runs(reference: Any, manifest: Manifest, arguments: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the outputs of sampling runs; those with the LoRA, which stays merged, run last."""
    found: dict[int, Any] = {}
    merged = False
    for number in sorted(range(len(arguments)), key=lambda number: "lora" in arguments[number]):
        given = dict(arguments[number])
        if given.pop("lora", None) and not merged:
            merge_random_lora(reference.modules, manifest, SEED)
            merged = True
        found[number] = reference(**given)
    return [found[number] for number in range(len(arguments))]


def _forward(module: nn.Module, spec: GraphSpec, feed: Feed) -> Feed:
    outputs = module(*(torch.from_numpy(feed[tensor.name]) for tensor in spec.inputs))
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    return {tensor.name: output.numpy() for tensor, output in zip(spec.outputs, tensors, strict=True)}


def _engine(
    bundle: Path,
    manifest: Manifest,
    backend: BuiltBackend,
    feeds: Feeds,
    arguments: Sequence[dict[str, Any]],
    progress: Progress,
) -> _Outputs:
    graphs = {}
    for done, (graph_name, inputs) in enumerate(feeds.items()):
        progress(f"{graph_name}: engine", 0.5 + done / len(feeds) / 2)
        with backend.open(bundle, manifest, graph_name, cache=False) as engine:
            graphs[graph_name] = [engine.run(feed) for feed in inputs]
    progress("sampling run: engine", 1.0)
    with Pipeline.of(Bundle(bundle, backend, cache=False)) as pipeline:
        _add_lora(pipeline, arguments)
        cut = backend.can_cut(pipeline.family.denoiser)
        first, *others = [given for given in arguments if cut or "cache_interval" not in given]
        output = pipeline(**first, output_type="np")
        latents = [pipeline(**given, output_type="latent").latents for given in others]
        previews = np.empty(0)
        if PREVIEW_DECODER in feeds:
            made = np.asarray(pipeline.preview(output.latents, "np"))
            previews = made.reshape(-1, *made.shape[-3:])
    return _Outputs(graphs, [output.latents, *latents], _images(output), previews)


def _add_lora(pipeline: Pipeline, arguments: Sequence[dict[str, Any]]) -> None:
    """Add the LoRA of random numbers from a file, if a run chooses it: the reader is compared too."""
    if any("lora" in given for given in arguments):
        with temporary_directory("lora") as directory:
            file = directory / f"{NAME}.safetensors"
            write_random_lora(file, pipeline.bundle.manifest, SEED)
            pipeline.add_lora(NAME, file)


def _images(output: Any) -> np.ndarray:
    """Return the images or the clip's frames (N, H, W, 3) of either pipeline's output."""
    return np.asarray(output.frames[0] if hasattr(output, "frames") else output.images)


def _worst(expected: _Outputs, found: _Outputs, graph_name: str, output: str) -> float:
    pairs = zip(expected.graphs[graph_name], found.graphs[graph_name], strict=True)
    # np.max keeps a NaN, Python's max may drop it
    return float(np.max([relative_l2(b[output], a[output]) for a, b in pairs]))


def _row(name: str, metric: str, value: float, limit: float, at_least: bool = False) -> ParityRow:
    # two digits, so that equal exports have equal manifests although threads may sum in another order
    return ParityRow(name, metric, float(f"{value:.1e}"), limit, at_least)
