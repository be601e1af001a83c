"""Ranges of a bundle's tensors in a sampling run, and the error of rounding modules to float16."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from controlnext import processor
from controlnext.bundle.format import MODEL, check_graph
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.plain import plain_files
from controlnext.bundle.reader import read_manifest
from controlnext.engines import Backend, Engine
from controlnext.engines.onnxruntime import library
from controlnext.evaluation.inputs import SamplingRun, run_arguments
from controlnext.evaluation.metrics import relative_l2
from controlnext.export.passes.attention import decompose_attention
from controlnext.export.passes.emulate import Choice, emulate_float16, is_float16
from controlnext.export.passes.ranges import OUTPUTS, add_ranges
from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.types import Feed, Progress
from controlnext.weights.graphs import read_graph

LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class TensorRange:
    """The range of a tensor over a run in float32 arithmetic.

    ``tensor``: name of the node that computes it. ``float16``: whether the bundle has it in float16.
    ``peak``: largest magnitude. ``flushed``: largest share of its values in one call that float16 rounds to
    zero.
    """

    graph: str
    tensor: str
    float16: bool
    peak: float
    flushed: float

    @property
    def overflows(self) -> bool:
        """Tell whether the bundle has the tensor in float16 and its peak is not finite there."""
        return self.float16 and not self.peak <= LARGEST

    @property
    def room(self) -> float:
        """Return the factor by which its values may grow before float16 overflows; for a peak above 0."""
        return LARGEST / self.peak


@dataclass(frozen=True)
class ModuleError:
    """The relative L2 of a graph's outputs when only the tensors of one module are rounded to float16.

    It is not finite if that overflows. ``module`` is empty for all float16 tensors of the bundle together.
    """

    graph: str
    module: str
    error: float


@dataclass(frozen=True)
class Ranges:
    """Rankings: tensors, float16 first and then by peak; modules by error, the largest first."""

    tensors: list[TensorRange]
    modules: list[ModuleError]


def measure_ranges(bundle: Path, run: SamplingRun, depth: int, progress: Progress) -> Ranges:
    """Measure every tensor in ``run``, then repeat one call of each graph with each module rounded to
    float16.

    ``depth``: number of components of a module's path that identify a module. In a bundle without float16 all
    tensors are candidates for rounding.
    """
    manifest = read_manifest(bundle)
    backend = _Backend()
    progress("sampling run", 0.0)
    with Pipeline.of(Bundle(bundle, backend, cache=False)) as pipeline:
        pipeline(**run_arguments(manifest, run), output_type="np")
    tensors = [tensor for engine in backend.engines for tensor in engine.ranges()]
    modules = []
    for done, engine in enumerate(backend.engines):
        for name, error in _errors(engine, depth):
            progress(f"{engine.graph_name}: {name}", (1 + done) / (1 + len(backend.engines)))
            modules.append(ModuleError(engine.graph_name, name, error))
    return Ranges(
        sorted(tensors, key=lambda tensor: (not tensor.float16, -tensor.peak)),
        sorted(modules, key=lambda module: -module.error if np.isfinite(module.error) else -np.inf),
    )


def open_graph(bundle: Path, graph_name: str) -> ir.Model:
    """Load the bundle's graph with decomposed attention; weights stay in their file."""
    return decompose_attention(read_graph(bundle / graph_name / MODEL))


def start_session(model: ir.Model, bundle: Path, graph_name: str) -> Any:
    """Make an ONNX Runtime session of ``model`` without graph optimizations, with the weights of
    ``graph_name``."""
    onnxruntime = library.load()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processor.usable_cores()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with plain_files(bundle / graph_name / MODEL) as graph:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(graph.parent)
        )
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


class _Engine(Engine):
    """An engine in float32 arithmetic that measures its tensors while it runs."""

    least_rank = 1  # the range of a tensor without elements is not defined

    def __init__(self, bundle: Path, manifest: Manifest, graph_name: str) -> None:
        super().__init__(manifest, graph_name)
        check_graph(bundle, manifest, graph_name)
        self.bundle = bundle
        model = open_graph(bundle, graph_name)
        values = [(node.name, value) for node in model.graph for value in node.outputs]
        self.float16 = {str(name) for name, value in values if is_float16(value)}
        self._names = add_ranges(emulate_float16(model, lambda _value: False))
        self._measures = np.zeros((2, len(self._names)), np.float32)
        self._session: Any | None = start_session(model, bundle, graph_name)
        self.feeds: list[Feed] = []

    def _run(self, feed: Any, replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        assert self._session is not None
        self.feeds.append(dict(feed))
        names = [spec.name for spec in self.outputs]
        *outputs, peaks, flushed = self._session.run([*names, *OUTPUTS], dict(feed))
        self._measures = np.maximum(self._measures, [peaks, flushed])
        return dict(zip(names, outputs, strict=True))

    def ranges(self) -> Iterator[TensorRange]:
        """Yield the range of every tensor over all runs so far."""
        for name, peak, flushed in zip(self._names, *self._measures.tolist(), strict=True):
            yield TensorRange(self.graph_name, name, name.partition(":")[0] in self.float16, peak, flushed)

    def _close(self) -> None:
        self._session = None


class _Backend(Backend):
    """A backend of measuring engines, which it keeps for their measurements."""

    def __init__(self) -> None:
        self.engines: list[_Engine] = []

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:  # noqa: ARG002
        self.engines.append(_Engine(bundle, manifest, graph_name))
        return self.engines[-1]


def _errors(engine: _Engine, depth: int) -> Iterator[tuple[str, float]]:
    """Yield modules and their errors of rounding, on the call in the middle of the run."""
    feed = engine.feeds[len(engine.feeds) // 2]

    def outputs(rounded: Choice) -> list[np.ndarray]:
        model = emulate_float16(open_graph(engine.bundle, engine.graph_name), rounded)
        found: list[np.ndarray] = start_session(model, engine.bundle, engine.graph_name).run(None, feed)
        return found

    def candidate(value: ir.Value) -> bool:
        return is_float16(value) or not engine.float16

    expected = outputs(lambda _value: False)
    graph = open_graph(engine.bundle, engine.graph_name).graph
    modules = {_module(value, depth) for node in graph for value in node.outputs if candidate(value)}
    yield "", _error(expected, outputs(candidate))
    for module in sorted(modules - {""}):

        def inside(value: ir.Value, module: str = module) -> bool:
            return candidate(value) and _module(value, depth) == module

        yield module, _error(expected, outputs(inside))


def _module(value: ir.Value, depth: int) -> str:
    node = value.producer()
    path = str(node.name).rpartition("/")[0] if node else ""
    return ".".join(path.split(".")[:depth])


def _error(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    pairs = zip(expected, found, strict=True)
    return float(np.max([relative_l2(b, a) for a, b in pairs]))
