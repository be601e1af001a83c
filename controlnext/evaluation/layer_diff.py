"""Where the graphs of two bundles of one model first differ: every tensor that both compute, compared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from polygraphy.backend.onnx import ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER

from controlnext import processor
from controlnext.bundle.format import MODEL, check_graph, graph_files
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.errors import InputError
from controlnext.evaluation.inputs import graph_feeds
from controlnext.evaluation.metrics import relative_l2
from controlnext.types import Feed, Precision, Progress

GROUP = 128
"""So many tensors are computed at a time: they are what memory is needed for, besides one graph."""
WORST = 10
_WEIGHTS = "session.model_external_initializers_file_folder_path"


class LayerDifference(msgspec.Struct, frozen=True):
    """A tensor: the node that computes it in the bundle, how far it is from the other bundle's (relative L2;
    infinite where either is not finite), and the largest number in the latter."""

    tensor: str
    node: str
    error: float
    largest: float


class GraphDifferences(msgspec.Struct, frozen=True):
    """Of one graph: how many tensors were compared, the first one beyond ``tolerance`` in the order in which
    they are computed, and those with the largest errors."""

    graph: str
    compared: int
    tolerance: float
    first: LayerDifference | None
    worst: list[LayerDifference]


def compare_layers(
    bundle: Path, other: Path, tolerances: Mapping[Precision, float], progress: Progress
) -> list[GraphDifferences]:
    """Compare every graph of ``bundle`` with the same one of ``other``; those that are equal are left out.

    Both run by ONNX Runtime on the processor, operator by operator as the graphs have them. ``tolerances``:
    what a tensor's error may be, by the precision of a graph of ``bundle``.

    Raises :class:`~controlnext.errors.InputError` for bundles of different models.
    """
    manifest, against = read_manifest(bundle), read_manifest(other)
    _check_same_model(manifest, against, other)
    folders = [name for name in manifest.graphs if _content(manifest, name) != _content(against, name)]
    feeds = graph_feeds(bundle, manifest)
    found = []
    for index, folder in enumerate(folders):
        report = partial(_report, progress, folder, index, len(folders))
        graphs = _graph(bundle, manifest, folder), _graph(other, against, folder)
        layers = list(_layers(*graphs, feeds[folder][0], report))
        tolerance = tolerances[manifest.graphs[folder].precision]
        first = next((layer for layer in layers if layer.error > tolerance), None)
        worst = sorted(layers, key=lambda layer: layer.error, reverse=True)[:WORST]
        found.append(GraphDifferences(folder, len(layers), tolerance, first, worst))
    return found


def _check_same_model(manifest: Manifest, against: Manifest, other: Path) -> None:
    ours, theirs = ((m.family, m.variant, _inputs(m)) for m in (manifest, against))
    if ours != theirs:
        raise InputError(
            f"{other} is a bundle of {against.variant}, with graphs {', '.join(against.graphs)}, and not of"
            " the same model; give one that was exported from the same weights at another precision"
        )


def _inputs(manifest: Manifest) -> dict[str, Any]:
    return {folder: graph.inputs for folder, graph in manifest.graphs.items()}


def _content(manifest: Manifest, folder: str) -> list[str]:
    return [entry.sha256 for entry in graph_files(manifest, folder).values()]


def _graph(bundle: Path, manifest: Manifest, folder: str) -> Path:
    return check_graph(bundle, manifest, folder) / MODEL


def _report(progress: Progress, folder: str, index: int, count: int, done: float) -> None:
    progress(f"{folder}: layers", (index + done) / count)


def _layers(graph: Path, other: Path, feed: Feed, report: Any) -> Iterator[LayerDifference]:
    """The tensors of both graphs with floating point numbers, in the order of ``graph``."""
    nodes = _nodes(graph)
    names = [name for name in nodes if name in _nodes(other)]
    for start in range(0, len(names), GROUP):
        report(start / len(names))
        group = names[start : start + GROUP]
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            sessions = [partial(_session, path, group) for path in (graph, other)]
            runners = [OnnxrtRunner(session, name=str(i)) for i, session in enumerate(sessions)]
            results = Comparator.run(runners, data_loader=[feed])
            errors: dict[str, tuple[float, float]] = {}
            Comparator.compare_accuracy(results, compare_func=partial(_compare, errors))
        yield from (LayerDifference(name, nodes[name], *errors[name]) for name in group if name in errors)


def _nodes(graph: Path) -> dict[str, str]:
    """The name of the node that computes each tensor, in order."""
    model = onnx.load(graph, load_external_data=False)
    return {
        output: node.name or node.op_type for node in model.graph.node for output in node.output if output
    }


def _session(graph: Path, outputs: list[str]) -> onnxruntime.InferenceSession:
    """A session that gives these tensors, computed as the graph says."""
    model = ModifyOutputs(onnx.load(graph, load_external_data=False), outputs=outputs)()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processor.usable_cores()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry(_WEIGHTS, str(graph.parent))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _compare(
    errors: dict[str, tuple[float, float]], found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> OrderedDict[str, bool]:
    """Note the error of every tensor of floating point numbers, and the largest number in ``wanted``."""
    for name in found:
        ours, theirs = np.asarray(found[name]), np.asarray(wanted[name])
        if ours.dtype.kind == "f" and ours.size:
            errors[name] = _relative(ours.astype(np.float64), theirs.astype(np.float64))
    return OrderedDict.fromkeys(found, True)


def _relative(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    largest = float(np.abs(wanted).max())
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf"), largest
    return relative_l2(found, wanted), largest
