"""From a checkpoint to a bundle: every graph, the tokenizers, the scheduler, the manifest."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
from torch import Tensor, nn

from controlnext import __version__
from controlnext.errors import InputError, ParityError
from controlnext.export.networks import wrap
from controlnext.export.passes import finish_graph
from controlnext.export.trace import make_hollow, trace
from controlnext.export.write import write_graph
from controlnext.files import new_folder
from controlnext.injection import CrossNormalization, averaging_pool
from controlnext.manifest import SCHEMA, Graph, Manifest, ParityRow, TensorEntry, list_files, write_manifest
from controlnext.registry import Family, GraphSpec
from controlnext.weights import Checkpoint

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done of all."""
Measure = Callable[[Path], list[ParityRow]]
"""Called with the folder of the finished graphs; its rows become the manifest's ``parity``."""

PRECISIONS = ("fp32", "fp16")
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript")


def export_bundle(
    checkpoint: Checkpoint,
    precision: str,
    output: Path,
    *,
    force: bool = False,
    progress: Progress = lambda _stage, _fraction: None,
    measure: Measure | None = None,
) -> Manifest:
    """Export every graph of ``checkpoint`` into the new folder ``output`` and return its manifest.

    ``precision`` is ``"fp32"`` or ``"fp16"``. The bundle is written aside and takes its place when it is
    complete and, with ``measure``, when every row passed; otherwise :class:`ParityError` is raised and
    nothing is left behind. ``force`` replaces an existing bundle.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; accepted: {', '.join(PRECISIONS)}")
    family = checkpoint.family
    specs = checkpoint.graphs
    with new_folder(output, force) as folder:
        graphs = {}
        for index, spec in enumerate(specs):
            step = _Step(progress, spec.folder, index / len(specs), 1 / len(specs))
            graphs[spec.folder] = _export_graph(checkpoint, spec, precision, folder, step)
        _write_texts(checkpoint, folder)
        manifest = Manifest(
            schema=SCHEMA,
            family=family.name,
            variant=checkpoint.variant.name,
            precision=precision,
            graphs=graphs,
            configs={name: network.config for name, network in checkpoint.networks.items()},
            options=checkpoint.options,
            sources=checkpoint.sources,
            tools={"controlnext": __version__} | {tool: importlib.metadata.version(tool) for tool in TOOLS},
            files=list_files(folder),
        )
        write_manifest(folder, manifest)
        if measure is not None:
            manifest = msgspec.structs.replace(manifest, parity=measure(folder))
            write_manifest(folder, manifest)
            check_parity(manifest.parity)
    return manifest


def check_parity(rows: list[ParityRow]) -> None:
    """Raise :class:`ParityError` naming the rows that miss their limit."""
    missed = [row for row in rows if not row.passed]
    if missed:
        texts = [f"{row.name} {row.metric} {row.value:.2g} (limit {row.limit:.2g})" for row in missed[:5]]
        raise ParityError(f"parity missed in {len(missed)} of {len(rows)} rows: {'; '.join(texts)}")


def graph_precision(family: Family, spec: GraphSpec, precision: str, config: Mapping[str, object]) -> str:
    """``precision``, or ``"fp32"`` for a VAE that overflows in float16."""
    return "fp32" if spec.network == "vae" and family.float32_vae(config) else precision


class _Step:
    """Progress within one graph."""

    def __init__(self, progress: Progress, name: str, start: float, share: float) -> None:
        self.progress, self.name, self.start, self.share = progress, name, start, share

    def __call__(self, what: str, fraction: float) -> None:
        self.progress(f"{self.name}: {what}", self.start + self.share * fraction)


def _export_graph(
    checkpoint: Checkpoint, spec: GraphSpec, precision: str, folder: Path, step: _Step
) -> Graph:
    network = checkpoint.networks[spec.network]
    precision = graph_precision(checkpoint.family, spec, precision, network.config)
    sizes = spec.sizes(network.config)
    inputs = [tensor.resolve(sizes) for tensor in spec.inputs]
    outputs = [tensor.resolve(sizes) for tensor in spec.outputs]
    step("tracing", 0.0)
    model = trace(_hollow_module(checkpoint, spec), spec, sizes)
    step("simplifying", 0.6)
    model = finish_graph(model, inputs, outputs, precision, spec.float32)
    readers = _readers(checkpoint, spec)
    write_graph(model, folder / spec.folder, readers, lambda done: step("writing", 0.7 + 0.3 * done))
    return Graph(
        network=spec.network,
        precision=precision,
        inputs=[TensorEntry.of(tensor) for tensor in inputs],
        outputs=[TensorEntry.of(tensor) for tensor in outputs],
    )


def _hollow_module(checkpoint: Checkpoint, spec: GraphSpec) -> nn.Module:
    network = make_hollow(checkpoint.networks[spec.network].meta_module())
    controls = [make_hollow(control.meta_module()) for control in checkpoint.controls]
    return wrap(spec, network, controls, CrossNormalization(checkpoint.variant.injection, averaging_pool))


def _readers(checkpoint: Checkpoint, spec: GraphSpec) -> dict[str, Callable[[], Tensor]]:
    """A function that reads each weight behind a graph, by the weight's name in the traced module."""
    parts = {"network": spec.network}
    if spec.wrapper == "denoiser":
        controls = {name: name for name, network in checkpoint.networks.items() if network.spec is None}
        parts = {"denoiser": spec.network, **controls}
    return {
        f"{prefix}.{name}": partial(checkpoint.networks[network].tensors.__getitem__, name)
        for prefix, network in parts.items()
        for name in checkpoint.networks[network].tensors
    }


def _write_texts(checkpoint: Checkpoint, folder: Path) -> None:
    for name, content in checkpoint.tokenizers.items():
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_text(content, encoding="utf-8")
    (folder / "scheduler").mkdir()
    scheduler = json.dumps(checkpoint.scheduler, indent=2, sort_keys=True) + "\n"
    (folder / "scheduler" / "scheduler_config.json").write_text(scheduler, encoding="utf-8")
