"""Memory and disk that an export will take, from the shapes of a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from controlnext.export.exporter import graph_precision
from controlnext.families import GraphSpec
from controlnext.types import Precision
from controlnext.weights import Checkpoint
from controlnext.weights.networks import Shape, shapes_of

LIBRARIES = 700_000_000
"""Bytes that the libraries of an export take in memory: 0.6 GB of the small model's export."""
TENSORS = 3
"""Copies of the largest tensor, in float32, that are in memory while a graph is written: with these two
numbers the peaks of docs/full-size.md are within a factor of 1.8."""
REFERENCE = 4
"""Bytes a parameter of PyTorch's float32 reference."""
ENGINE = 6
"""Bytes a parameter that ONNX Runtime takes to run a graph on a processor, where it keeps float16 weights as
float32 too (4.2 to 6.1 in docs/full-size.md)."""
QUANTIZED = 0.75
"""Share of the matrices' and kernels' parameters that a calibration puts into int8: it was 0.6 of the tiny
model's, 0.8 of the small model's, and is known only when it is done."""
GRAPH = 100_000
"""Bytes of a graph's nodes; a denoiser is written in several forms, which share the weights."""
FORMS = 5
"""Forms of a denoiser."""
_HALVES = {"decoder": "encoder.", "encoder": "decoder."}
"""The part of a network of two halves that a graph of one of them leaves out, by a word in its wrapper."""


@dataclass(frozen=True)
class GraphEstimate:
    """A graph of a bundle: its precision, its parameters and the bytes of its files."""

    name: str
    precision: Precision
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """The needs of an export, in bytes.

    ``disk``: the bundle; ``disk_at_work``: the most that is on its disk while it is made, besides what is
    there. ``memory``: the largest of ``stages``, which are those of the export by name.
    """

    graphs: list[GraphEstimate]
    disk: int
    disk_at_work: int
    stages: dict[str, int]

    @property
    def memory(self) -> int:
        """The memory at the peak."""
        return max(self.stages.values())


def estimate(checkpoint: Checkpoint, precision: Precision, compute: Precision, *, compare: bool) -> Estimate:
    """Return what the export of ``checkpoint`` will take; ``compare``: it is compared with PyTorch.

    Disk: a parameter takes 4 bytes in a float32 graph and 2 in a float16 one; in an int8 denoiser 1 if it is
    of the share :data:`QUANTIZED` of matrices and kernels, otherwise as in ``compute``. A VAE that overflows
    in float16 is float32. A graph has :data:`GRAPH` besides, a denoiser :data:`FORMS` times that, and
    tokenizers are added. While an int8 denoiser is calibrated, it is there in float32 instead.

    Memory: :data:`LIBRARIES`, and in each stage more. Writing: :data:`TENSORS` times the largest tensor in
    float32. Calibration: the denoiser's float32 file, which is mapped, and the engines of the other graphs
    with :data:`ENGINE` bytes a parameter. Comparison: PyTorch's networks with :data:`REFERENCE` bytes a
    parameter, and after them the engines. The activations, which grow with the images of a comparison, are
    small and left out.
    """
    shapes = _Shapes(checkpoint)
    plain = compute if precision.calibrated else precision
    graphs = [_graph(checkpoint, spec, shapes, precision, plain) for spec in checkpoint.graphs]
    (denoiser,) = (graph for graph in graphs if graph.name == checkpoint.family.denoiser)
    texts = sum(len(text.encode()) for text in checkpoint.tokenizers.values())
    disk = sum(graph.bytes for graph in graphs) + texts
    stages = {"writing": LIBRARIES + TENSORS * _float32(max(shapes.sizes()))}
    engines, at_work = ENGINE * sum(graph.parameters for graph in graphs), disk
    if precision.calibrated:
        unfinished = _float32(denoiser.parameters) + GRAPH
        at_work = max(disk, disk - denoiser.bytes + unfinished)
        others = engines - ENGINE * denoiser.parameters
        stages["calibration"] = LIBRARIES + _float32(denoiser.parameters) + others
    if compare:
        stages["comparison"] = LIBRARIES + max(REFERENCE * sum(shapes.sizes()), engines)
    return Estimate(graphs, disk, at_work, stages)


class _Shapes:
    """The shapes of the tensors of a checkpoint, by network; those of adapters have no names."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.networks = {name: shapes_of(one.meta_module()) for name, one in checkpoint.networks.items()}
        self._controls = [name for name, one in checkpoint.networks.items() if one.spec is None]
        self._adapters = [list(shapes_of(one.meta_module()).values()) for one in checkpoint.adapters]

    def sizes(self) -> Iterator[int]:
        """Yield the number of elements of each tensor."""
        for one in (*(list(shapes.values()) for shapes in self.networks.values()), *self._adapters):
            yield from map(math.prod, one)

    def of(self, spec: GraphSpec) -> Iterator[Shape]:
        """Yield the shape of each weight of a graph: of its half of a network with two."""
        names = self.networks[spec.network]
        halves = {half for half in _HALVES.values() if any(name.startswith(half) for name in names)}
        others = [half for word, half in _HALVES.items() if word in spec.wrapper and len(halves) == 2]
        yield from (shape for name, shape in names.items() if not name.startswith(tuple(others)))
        if spec.wrapper == "denoiser":
            for control in self._controls:
                yield from self.networks[control].values()
            for adapter in self._adapters:
                yield from adapter


def _graph(
    checkpoint: Checkpoint, spec: GraphSpec, shapes: _Shapes, precision: Precision, plain: Precision
) -> GraphEstimate:
    own, denoiser = graph_precision(checkpoint, spec, plain), spec.wrapper == "denoiser"
    quantized = precision.calibrated and denoiser
    matrices = vectors = 0
    for shape in shapes.of(spec):
        if len(shape) > 1:
            matrices += math.prod(shape)
        else:
            vectors += math.prod(shape)
    width = own.weights.itemsize
    mixed = QUANTIZED * precision.weights.itemsize + (1 - QUANTIZED) * width if quantized else width
    size = round(matrices * mixed) + vectors * width + (FORMS if denoiser else 1) * GRAPH
    return GraphEstimate(spec.name, precision if quantized else own, matrices + vectors, size)


def _float32(elements: int) -> int:
    return elements * Precision.FP32.weights.itemsize
