"""Export a checkpoint to a bundle: all graphs, the tokenizers, the scheduler, the manifest."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from torch import nn

from controlnext import __version__
from controlnext.bundle.files import new_folder
from controlnext.bundle.format import MODEL, list_files
from controlnext.bundle.manifest import (
    SCHEMA,
    Graph,
    LoraRoom,
    Manifest,
    ParityRow,
    Quantization,
    Shallow,
    TensorEntry,
    write_manifest,
)
from controlnext.errors import InputError, ParityError
from controlnext.export.adapters import wrap
from controlnext.export.lora import check_lora_rank, with_room
from controlnext.export.passes import finish_graph, quantize, without_outputs
from controlnext.export.quantization.calibrate import Denoise, calibrate
from controlnext.export.quantization.config import DEFAULT, CalibrationSettings
from controlnext.export.readers import weight_readers
from controlnext.export.tracing import materialize_meta_parameters, trace
from controlnext.export.writer import attach_weights, write_graph, write_parts, write_shallow
from controlnext.families import PER_STEP_INPUTS, CachedFeature, GraphSpec
from controlnext.models.cross_normalization import CrossNormalization, averaging_pool
from controlnext.tensor_spec import TensorSpec
from controlnext.types import COMPUTES, Precision, Progress
from controlnext.weights import Checkpoint
from controlnext.weights.ip_adapter import AdapterWeights

Measure = Callable[[Path], list[ParityRow]]
"""Called with the directory of the finished graphs; its rows become the manifest's ``parity``."""

SampleWith = Callable[[Path, Denoise], None]
"""Runs a denoiser through sampling runs, with the (unfinished) bundle in a directory."""
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript")


def export_bundle(
    checkpoint: Checkpoint,
    precision: str,
    output: Path,
    *,
    compute: str = Precision.FP32,
    lora_rank: int = 0,
    sample: SampleWith | None = None,
    calibrated: Quantization | None = None,
    calibration: CalibrationSettings = DEFAULT,
    force: bool = False,
    progress: Progress = lambda _stage, _fraction: None,
    measure: Measure | None = None,
) -> Manifest:
    """Export every graph of ``checkpoint`` into the new directory ``output`` and return its manifest.

    ``precision`` is a :class:`~controlnext.types.Precision` or its name. With a calibrated precision,
    :mod:`controlnext.export.quantization.calibrate` chooses the layers of the denoiser that have it, by the
    settings ``calibration`` and the sampling runs of ``sample``; ``calibrated`` is the result of an earlier
    calibration instead. ``compute``, one of :data:`~controlnext.types.COMPUTES`, is the precision of
    everything else. ``lora_rank``: room for LoRAs at run time, up to this rank.

    The bundle is written to a temporary directory, which is renamed when it is complete and, with
    ``measure``, all rows have passed; otherwise :class:`ParityError` is raised and no files remain. ``force``
    replaces an existing bundle.
    """
    precision, compute = (
        _checked_precision("precision", precision, Precision),
        _checked_precision("compute", compute, COMPUTES),
    )
    if precision.calibrated and sample is None and calibrated is None:
        message = f"{precision} is calibrated on sampling runs; give export_bundle a function `sample`"
        raise InputError(message, argument="sample")
    _check(checkpoint, lora_rank, progress)
    specs = checkpoint.graphs
    plain = compute if precision.calibrated else precision
    with new_folder(output, force) as directory:
        graphs: dict[str, Graph] = {}
        _write_texts(checkpoint, directory)
        # the denoiser comes last: its calibration needs the others
        for index, spec in enumerate(sorted(specs, key=lambda spec: spec.wrapper == "denoiser")):
            step = _Step(progress, spec.name, index / len(specs), 1 / len(specs))
            own, room = with_room(checkpoint, spec, lora_rank)
            job = _Job(checkpoint, own, graph_precision(checkpoint, spec, plain), directory, step, room)
            if precision.calibrated and spec.wrapper == "denoiser":
                traced = job.traced()
                found = calibrated or _calibrate(job, traced, graphs, sample, calibration)
                graphs[spec.name] = _export_quantized(job, traced, found, precision)
            else:
                graphs[spec.name] = _export_graph(job)
        manifest = msgspec.structs.replace(
            _manifest(checkpoint, precision, {spec.name: graphs[spec.name] for spec in specs}),
            files=list_files(directory),
        )
        write_manifest(directory, manifest)
        if measure is not None:
            manifest = msgspec.structs.replace(manifest, parity=measure(directory))
            write_manifest(directory, manifest)
            check_parity(manifest.parity)
    return manifest


def _check(checkpoint: Checkpoint, lora_rank: int, progress: Progress) -> None:
    """Raise for what cannot be exported, before the minutes that tracing takes."""
    check_lora_rank(checkpoint.family, lora_rank)
    if not checkpoint.random:
        progress("reading the weights", 0.0)
        checkpoint.check_finite()


def _checked_precision(what: str, name: str, accepted: Iterable[Precision]) -> Precision:
    for precision in accepted:
        if precision == name:
            return precision
    raise InputError(f"unknown {what} {name!r}; accepted: {', '.join(accepted)}", argument=what)


def _manifest(checkpoint: Checkpoint, precision: Precision, graphs: dict[str, Graph]) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        family=checkpoint.family.name,
        variant=checkpoint.variant.name,
        precision=precision,
        graphs=graphs,
        configs={name: network.config for name, network in checkpoint.networks.items()},
        options=checkpoint.options,
        sources=checkpoint.sources,
        tools={"controlnext": __version__} | {tool: importlib.metadata.version(tool) for tool in TOOLS},
        files={},
        scheduler=checkpoint.settings,
    )


def check_parity(rows: list[ParityRow]) -> None:
    """Raise :class:`ParityError` with the rows that exceed their limit."""
    missed = [row for row in rows if not row.passed]
    if missed:
        texts = [f"{row.name} {row.metric} {row.value:.2g} (limit {row.limit:.2g})" for row in missed[:5]]
        raise ParityError(f"parity missed in {len(missed)} of {len(rows)} rows: {'; '.join(texts)}")


def graph_precision(checkpoint: Checkpoint, spec: GraphSpec, precision: Precision) -> Precision:
    """Return ``precision``, or float32 for a VAE that overflows in float16."""
    config = checkpoint.networks[spec.network].config
    overflows = spec.network == "vae" and checkpoint.family.float32_vae(config)
    return Precision.FP32 if overflows else precision


class _Step:
    """Progress within one graph."""

    def __init__(self, progress: Progress, name: str, start: float, share: float) -> None:
        self.progress, self.name, self.start, self.share = progress, name, start, share

    def __call__(self, what: str, fraction: float) -> None:
        self.progress(f"{self.name}: {what}", self.start + self.share * fraction)


@dataclass(frozen=True)
class _Job:
    """One graph to export."""

    checkpoint: Checkpoint
    spec: GraphSpec
    precision: Precision
    directory: Path
    step: _Step
    room: LoraRoom | None

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.networks[self.spec.network].config

    @property
    def sizes(self) -> dict[str, int]:
        return self.spec.sizes(self.config)

    @property
    def adapters(self) -> Sequence[AdapterWeights]:
        return self.checkpoint.adapters if self.spec.wrapper == "denoiser" else ()

    @property
    def cached(self) -> tuple[CachedFeature, ...]:
        return self.spec.cached(self.config)

    @property
    def inputs(self) -> list[TensorSpec]:
        return [tensor.resolve(self.sizes) for tensor in self.spec.inputs]

    @property
    def outputs(self) -> list[TensorSpec]:
        return [tensor.resolve(self.sizes) for tensor in self.spec.outputs]

    def traced(self) -> ir.Model:
        self.step("tracing", 0.0)
        spec = self.spec.with_features(self.config)
        return trace(_meta_module(self), spec, self.sizes, lambda done: self.step("tracing", 0.6 * done))

    def finished(self, traced: ir.Model, precision: Precision) -> ir.Model:
        """Return the final graph with its weights; it has the cached features as outputs too."""
        self.step("simplifying", 0.6)
        outputs = [*self.outputs, *(one.spec for one in self.cached)]
        model = finish_graph(traced, self.inputs, outputs, precision, self.spec.float32)
        return attach_weights(model, weight_readers(self.checkpoint, self.spec))

    def write(self, model: ir.Model) -> None:
        write_graph(
            model, self.directory / self.spec.name, lambda done: self.step("writing", 0.7 + 0.3 * done)
        )

    def ship(self, model: ir.Model, precision: Precision) -> Graph:
        """Write the graph, a denoiser's with its parts, and return its entry in the manifest."""
        self.write(model)
        entry, directory, cached = self.entry(precision), self.directory / self.spec.name, self.cached
        if self.spec.wrapper == "denoiser":
            write_parts(directory, PER_STEP_INPUTS, self.spec.prologue, precision, cached)
        if cached:
            features = [TensorEntry.of(one.spec) for one in cached]
            shallow = Shallow(write_shallow(directory, cached), features)
            entry = msgspec.structs.replace(entry, shallow=shallow)
        return entry

    def entry(self, precision: Precision) -> Graph:
        return Graph(
            network=self.spec.network,
            precision=precision,
            inputs=[TensorEntry.of(tensor) for tensor in self.inputs],
            outputs=[TensorEntry.of(tensor) for tensor in self.outputs],
            lora=self.room or msgspec.UNSET,
            clip_skip=self.spec.clip_skip or msgspec.UNSET,
            image_prompts=[adapter.entry for adapter in self.adapters] or msgspec.UNSET,
        )


def _export_graph(job: _Job) -> Graph:
    return job.ship(job.finished(job.traced(), job.precision), job.precision)


def _export_quantized(job: _Job, traced: ir.Model, found: Quantization, precision: Precision) -> Graph:
    entry = job.ship(quantize(job.finished(traced, job.precision), found.layers), precision)
    return msgspec.structs.replace(entry, compute=job.precision, quantization=found)


def _calibrate(
    job: _Job,
    traced: ir.Model,
    others: Mapping[str, Graph],
    sample: SampleWith | None,
    settings: CalibrationSettings,
) -> Quantization:
    """Calibrate the denoiser, which is written in float32 for that; return what to quantize."""
    assert sample is not None
    target = job.directory / job.spec.name
    features = [one.spec.name for one in job.cached]
    job.write(without_outputs(job.finished(traced.clone(), Precision.FP32), features))
    graphs = {**others, job.spec.name: job.entry(Precision.FP32)}
    files = list_files(job.directory, without=job.spec.name)
    unfinished = msgspec.structs.replace(_manifest(job.checkpoint, Precision.FP32, graphs), files=files)
    write_manifest(job.directory, unfinished)
    found = calibrate(target / MODEL, job.inputs, partial(sample, job.directory), job.step, settings)
    shutil.rmtree(target)
    return found


def _meta_module(job: _Job) -> nn.Module:
    checkpoint, spec = job.checkpoint, job.spec
    network = materialize_meta_parameters(checkpoint.networks[spec.network].meta_module(traced=True))
    controls = [materialize_meta_parameters(control.meta_module()) for control in checkpoint.controls]
    normalization = CrossNormalization(checkpoint.variant.injection, averaging_pool)
    adapters = [materialize_meta_parameters(adapter.meta_module()) for adapter in job.adapters]
    return wrap(spec, network, controls, normalization, job.cached, job.room, adapters)


def _write_texts(checkpoint: Checkpoint, directory: Path) -> None:
    for name, content in checkpoint.tokenizers.items():
        (directory / name).mkdir()
        (directory / name / "tokenizer.json").write_text(content, encoding="utf-8")
    (directory / "scheduler").mkdir()
    scheduler = json.dumps(checkpoint.scheduler, indent=2, sort_keys=True) + "\n"
    (directory / "scheduler" / "scheduler_config.json").write_text(scheduler, encoding="utf-8")
