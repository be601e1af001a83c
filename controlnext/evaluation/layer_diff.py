"""Comparison of two bundles of one model tensor by tensor, to find where their graphs first differ."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from polygraphy.backend.onnx import ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER

from controlnext import processor
from controlnext.bundle.format import MODEL, check_graph, graph_files
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.plain import plain_files
from controlnext.bundle.reader import read_manifest
from controlnext.errors import InputError
from controlnext.evaluation.inputs import graph_feeds
from controlnext.evaluation.metrics import relative_l2
from controlnext.onnx_runtime import load_onnxruntime
from controlnext.types import Feed, Precision, Progress

GROUP = 128
"""Number of tensors computed at a time: they take memory besides the graph."""
WORST = 10
"""Number of tensors with the largest errors that are reported per graph."""
_WEIGHTS = "session.model_external_initializers_file_folder_path"


class LayerDifference(msgspec.Struct, frozen=True):
    """The difference of one tensor between two bundles.

    ``node``: name of the node that computes it in the first bundle. ``error``: relative L2, infinite if
    either tensor is not finite. ``largest``: largest magnitude in the other bundle's tensor.
    """

    tensor: str
    node: str
    error: float
    largest: float


class GraphDifferences(msgspec.Struct, frozen=True):
    """The differences of one graph.

    ``compared``: number of tensors compared. ``first``: the first tensor, in the order of computation, with
    an error above ``tolerance``. ``worst``: the tensors with the largest errors.
    """

    graph: str
    compared: int
    tolerance: float
    first: LayerDifference | None
    worst: list[LayerDifference]


def compare_layers(
    bundle: Path, other: Path, tolerances: Mapping[Precision, float], progress: Progress
) -> list[GraphDifferences]:
    """Compare every graph of ``bundle`` with the same graph of ``other``, skipping graphs with equal files.

    ONNX Runtime runs both on the CPU without graph optimizations. ``tolerances``: largest allowed error of a
    tensor, by the precision of the graph of ``bundle``.

    Raises :class:`~controlnext.errors.InputError` for bundles of different models.
    """
    manifest, against = read_manifest(bundle), read_manifest(other)
    _check_same_model(manifest, against, other)
    graph_names = [name for name in manifest.graphs if _content(manifest, name) != _content(against, name)]
    feeds = graph_feeds(bundle, manifest)
    found = []
    for index, graph_name in enumerate(graph_names):
        report = partial(_report, progress, graph_name, index, len(graph_names))
        graphs = _graph(bundle, manifest, graph_name), _graph(other, against, graph_name)
        layers = list(_layers(*graphs, feeds[graph_name][0], report))
        tolerance = tolerances[manifest.graphs[graph_name].precision]
        first = next((layer for layer in layers if layer.error > tolerance), None)
        worst = sorted(layers, key=lambda layer: layer.error, reverse=True)[:WORST]
        found.append(GraphDifferences(graph_name, len(layers), tolerance, first, worst))
    return found


def _check_same_model(manifest: Manifest, against: Manifest, other: Path) -> None:
    ours, theirs = ((m.family, m.variant, _inputs(m)) for m in (manifest, against))
    if ours != theirs:
        raise InputError(
            f"{other} is of another model, {against.variant} with graphs {', '.join(against.graphs)};"
            " give a bundle that was exported from the same weights at another precision"
        )


def _inputs(manifest: Manifest) -> dict[str, Any]:
    return {name: graph.inputs for name, graph in manifest.graphs.items()}


def _content(manifest: Manifest, graph_name: str) -> list[str]:
    return [entry.sha256 for entry in graph_files(manifest, graph_name).values()]


def _graph(bundle: Path, manifest: Manifest, graph_name: str) -> Path:
    """Verify the checksums of a graph's files and return the path of its ONNX file."""
    return check_graph(bundle, manifest, graph_name) / MODEL


def _report(progress: Progress, graph_name: str, index: int, count: int, done: float) -> None:
    progress(f"{graph_name}: layers", (index + done) / count)


def _layers(graph: Path, other: Path, feed: Feed, report: Any) -> Iterator[LayerDifference]:
    """Yield the differences of the floating-point tensors of both graphs, in the order of ``graph``."""
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
    """Return the name of the node that computes each tensor, by the tensor's name, in order."""
    model = onnx.load(graph, load_external_data=False)
    return {
        output: node.name or node.op_type for node in model.graph.node for output in node.output if output
    }


def _session(graph: Path, outputs: list[str]) -> Any:
    """Return a session that outputs the tensors ``outputs``, without graph optimizations."""
    model = ModifyOutputs(onnx.load(graph, load_external_data=False), outputs=outputs)()
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processor.usable_cores()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with plain_files(graph) as plain:
        options.add_session_config_entry(_WEIGHTS, str(plain.parent))
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _compare(
    errors: dict[str, tuple[float, float]], found: Mapping[str, Any], expected: Mapping[str, Any]
) -> OrderedDict[str, bool]:
    """Add the error and the largest expected magnitude of every floating-point tensor to ``errors``."""
    for name in found:
        ours, theirs = np.asarray(found[name]), np.asarray(expected[name])
        if ours.dtype.kind == "f" and ours.size:
            errors[name] = _relative(ours.astype(np.float64), theirs.astype(np.float64))
    return OrderedDict.fromkeys(found, True)


def _relative(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    largest = float(np.abs(expected).max())
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf"), largest
    return relative_l2(found, expected), largest
