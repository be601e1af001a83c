"""Quantize layers to int8 with explicit QuantizeLinear and DequantizeLinear nodes.

Rules:
- a layer is a Conv or MatMul with a parameter of the network as its weight; those with scales are quantized,
  all others stay as they are (a Gemm embeds the time: one row a sample, nothing to gain);
- weights become int8, symmetric, one scale for each output channel, and keep their state-dict name; where
  the graph transposes a weight, the int8 values are stored transposed (``<name>.transposed``), since engines
  only recognize a weight that goes straight into its DequantizeLinear;
- activations are quantized symmetrically with one scale a tensor, once for all layers that read the tensor;
- with an output scale, the layer's output is quantized as well: ONNX Runtime runs a convolution in int8 only
  between quantized tensors;
- a normalized layer reads its input divided by the mean magnitude of its row, and its output is multiplied by
  that again: one grid then suits the small and the large steps of a sampling run;
- where the graph gives a layer's output, such as a feature for the step cache, it gives what the readers of
  that output get;
- scales have the type of the tensor that they scale, so the pass works behind ``lower_to_float16`` too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from controlnext.bundle.manifest import LayerScales
from controlnext.errors import WorkError
from controlnext.export.passes.constants import add_constant
from controlnext.export.passes.names import name_of
from controlnext.weights.bundle import SCALE, TRANSPOSED

LEVELS = 127
"""The largest level of the symmetric grid: -127 to 127; weights do not use -128."""
_DISTINCT = 2.0**-20
_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}


@dataclass(frozen=True)
class Layer:
    """A node with a weight; ``transposed``: the graph transposes the weight before the node reads it."""

    node: ir.Node
    weight: ir.Value
    transposed: bool

    @property
    def axis(self) -> int:
        """The axis of the output channels in the weight as the node reads it."""
        return 1 if self.node.op_type == "MatMul" else 0

    @property
    def values(self) -> ir.TensorProtocol:
        """The weight as it is stored."""
        assert self.weight.const_value is not None
        return self.weight.const_value

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as the node reads it."""
        shape = tuple(self.values.shape.numpy())
        return shape[::-1] if self.transposed else shape


def layers(model: ir.Model) -> Iterator[Layer]:
    """Yield the layers that can be quantized, in the order of the graph."""
    for node in model.graph:
        if node.op_type not in ("Conv", "MatMul"):
            continue
        weight = node.inputs[1]
        producer = weight.producer() if weight is not None else None
        transposed = producer is not None and producer.op_type == "Transpose"
        if transposed and producer is not None:
            weight = producer.inputs[0]
        # a weight with another reader would be needed twice
        alone = all(value is not None and len(value.uses()) == 1 for value in (weight, node.inputs[1]))
        if weight is not None and weight.is_initializer() and alone:
            yield Layer(node, weight, transposed)


def quantize(model: ir.Model, scales: Mapping[str, LayerScales]) -> ir.Model:
    """Return the model with the layers whose node names are in ``scales`` in int8.

    Needs the values of weights (lazily) and names of nodes. Raises :class:`WorkError` for a name that is not
    a layer of the graph.
    """
    found = {layer.node.name: layer for layer in layers(model)}
    if unknown := sorted(scales.keys() - found.keys()):
        raise WorkError(f"no layer of the graph is named {unknown[:5]}")
    readers: Counter[ir.Value] = Counter()
    for name, scale in scales.items():
        layer = found[name]
        if scale.normalized:
            normalize(model.graph, layer)
        source = layer.node.inputs[0]
        assert source is not None
        step = scale.input * (1 + readers[source] * _DISTINCT)
        readers[source] += 1
        grid = _Grid(model.graph, f"{name}.input", step, source.dtype)
        grid.round(source, [(layer.node, 0)])
        _spread_up(grid, source)
        layer.node.replace_input_with(1, _int8_weight(model.graph, layer))
        if scale.output is not None:
            value = layer.node.outputs[0]
            reading = len(value.uses()) + value.is_graph_output()
            if reading > 1 or any(user.op_type in _MOVES for user in value.consumers()):
                _add_bias_behind(model.graph, layer)
            grid = _Grid(model.graph, f"{name}.output", scale.output, value.dtype)
            rounded = grid.round(value, value.uses())
            _give_out(model.graph, value, rounded)
    # Transposes of weights that are stored transposed now
    common.RemoveUnusedNodesPass()(model)
    return model


class _Grid:
    """An int8 grid of one step, and the pairs of nodes that round values to it."""

    def __init__(self, graph: ir.Graph, name: str, step: float, dtype: ir.DataType | None) -> None:
        assert dtype is not None
        self.graph, self.name, self.pairs = graph, name, 0
        self.step = add_constant(graph, f"{name}{SCALE}", np.array(step, dtype.numpy()))
        self.zero = add_constant(graph, f"{name}.zero_point", np.array(0, np.int8))

    def round(self, value: ir.Value, uses: Iterable[tuple[ir.Node, int]]) -> ir.Value:
        """Return ``value`` rounded to the grid, which these uses, nodes and numbers of their inputs, read."""
        uses = list(uses)
        number = f".{self.pairs}" if self.pairs else ""
        self.pairs += 1
        rounded = ir.Node(
            "", "QuantizeLinear", [value, self.step, self.zero], name=f"{self.name}/QuantizeLinear{number}"
        )
        rounded.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        restored = ir.Node(
            "",
            "DequantizeLinear",
            [rounded.outputs[0], self.step, self.zero],
            name=f"{self.name}/DequantizeLinear{number}",
        )
        restored.outputs[0].type = value.type
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [rounded, restored])
        else:
            self.graph.insert_after(producer, [rounded, restored])
        for node, index in uses:
            node.replace_input_with(index, restored.outputs[0])
        return restored.outputs[0]


def _give_out(graph: ir.Graph, value: ir.Value, result: ir.Value) -> None:
    """If the graph gives ``value`` as an output, have it give ``result`` under that name."""
    if not value.is_graph_output():
        return
    graph.outputs[graph.outputs.index(value)] = result
    name, value.name = value.name, f"{value.name}.inside"
    result.name, result.shape = name, value.shape


def _spread_up(grid: _Grid, value: ir.Value) -> None:
    """Round the inputs of a rounded value too, up through nodes that only move data."""
    while (mover := value.producer()) is not None and mover.op_type in _MOVES and len(value.uses()) == 1:
        above = mover.inputs[0]
        assert above is not None
        grid.round(above, [(mover, 0)])
        value = above


def _add_bias_behind(graph: ir.Graph, layer: Layer) -> None:
    """Take the bias out of a convolution and add it to the output."""
    node, value, rank = layer.node, layer.node.outputs[0], len(layer.shape)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return
    node.resize_inputs(2)
    axes = add_constant(graph, f"{node.name}.axes", np.arange(1, rank - 1))
    column = ir.Node("", "Unsqueeze", [bias, axes], name=f"{node.name}/Unsqueeze")
    column.outputs[0].type = value.type
    uses = list(value.uses())
    total = ir.Node("", "Add", [value, column.outputs[0]], name=f"{node.name}/Add")
    total.outputs[0].type = value.type
    graph.insert_after(node, [column, total])
    for user, index in uses:
        user.replace_input_with(index, total.outputs[0])
    _give_out(graph, value, total.outputs[0])


def normalize(graph: ir.Graph, layer: Layer) -> None:
    """Divide the input of a convolution by the mean magnitude of its row, and multiply the output by it."""
    _add_bias_behind(graph, layer)
    node, source, value = layer.node, layer.node.inputs[0], layer.node.outputs[0]
    assert source is not None
    assert source.dtype is not None
    axes = add_constant(graph, f"{node.name}.row", np.arange(1, len(layer.shape)))
    # a row of zeros stays one
    floor = add_constant(graph, f"{node.name}.floor", np.array(1e-6, source.dtype.numpy()))
    magnitudes = ir.Node("", "Abs", [source], name=f"{node.name}/Abs")
    mean = ir.Node("", "ReduceMean", [magnitudes.outputs[0], axes], name=f"{node.name}/ReduceMean")
    safe = ir.Node("", "Add", [mean.outputs[0], floor], name=f"{node.name}/Add.floor")
    divided = ir.Node("", "Div", [source, safe.outputs[0]], name=f"{node.name}/Div")
    uses = list(value.uses())
    restored = ir.Node("", "Mul", [value, safe.outputs[0]], name=f"{node.name}/Mul")
    for made in (magnitudes, mean, safe, divided, restored):
        made.outputs[0].type = source.type
    graph.insert_before(node, [magnitudes, mean, safe, divided])
    graph.insert_after(node, restored)
    node.replace_input_with(0, divided.outputs[0])
    for user, index in uses:
        user.replace_input_with(index, restored.outputs[0])
    _give_out(graph, value, restored.outputs[0])


def _int8_weight(graph: ir.Graph, layer: Layer) -> ir.Value:
    """Store the weight in int8; return it as the node reads it, behind its DequantizeLinear."""
    source, dtype, axis, shape = layer.values, layer.weight.dtype, layer.axis, layer.shape
    assert dtype is not None
    name = name_of(layer.weight) + (TRANSPOSED if layer.transposed else "")

    def values() -> np.ndarray:
        array = source.numpy().astype(np.float32)
        return array.T if layer.transposed else array

    def steps(array: np.ndarray) -> np.ndarray:
        smallest = np.finfo(dtype.numpy()).smallest_subnormal
        return np.maximum(weight_scales(array, axis).astype(dtype.numpy()), smallest)

    def scales() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(steps(values()))

    def quantized() -> ir.Tensor[np.ndarray]:
        array = values()
        return ir.Tensor(to_int8(array, steps(array).astype(np.float32), axis))

    del graph.initializers[name_of(layer.weight)]
    stored = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT8), shape=ir.Shape(shape))
    stored.const_value = ir.LazyTensor(quantized, ir.DataType.INT8, ir.Shape(shape), name=name)
    factor = ir.Value(name=f"{name}{SCALE}", type=ir.TensorType(dtype), shape=ir.Shape([shape[axis]]))
    factor.const_value = ir.LazyTensor(scales, dtype, ir.Shape([shape[axis]]), name=factor.name)
    graph.register_initializer(stored)
    graph.register_initializer(factor)
    node = ir.Node(
        "",
        "DequantizeLinear",
        [stored, factor],
        [ir.AttrInt64("axis", axis)],
        name=f"{name}/DequantizeLinear",
    )
    node.outputs[0].type = ir.TensorType(dtype)
    graph.insert_before(layer.node, node)
    return node.outputs[0]


def weight_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return the scale of each output channel's grid: the largest magnitude gets the largest level."""
    largest = np.abs(weight).max(tuple(other for other in range(weight.ndim) if other != axis))
    return np.maximum(largest, np.finfo(np.float32).tiny) / np.float32(LEVELS)


def to_int8(array: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """Return ``array`` divided by ``scales`` along ``axis``, rounded to the nearest and clipped."""
    shape = [-1 if other == axis else 1 for other in range(array.ndim)]
    return np.rint(array / scales.reshape(shape)).clip(-LEVELS, LEVELS).astype(np.int8)
