"""Move an int8 graph to unsigned grids: the same numbers in the types that CPUs multiply.

Rules:
- a grid is shifted by 128: its values are uint8 and its zero point is 128 instead of 0;
- a weight keeps its int8 values in the file and is shifted while the graph is loaded, where ONNX Runtime
  folds that;
- the operators do not change.

Activations are uint8 in every form. ONNX Runtime shifts them itself for x86, but not if two nodes read
a grid; then the layer stays in float32. Weights are shifted for processors that get no other product right:
x86 without VNNI multiplies uint8 by int8 in pairs whose sum has 16 bits; 2 x 255 x 127 saturates at
32767. Two products of uint8 are summed in 32 bits. That is slower, so int8 weights are used where they are
right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from controlnext.errors import WorkError
from controlnext.export.passes.constants import add_constant
from controlnext.export.passes.names import name_of

OFFSET = 128
"""The difference between a uint8 number and the int8 number that it represents."""

_READS_ZERO_POINT = {"QuantizeLinear": 2, "DequantizeLinear": 2}
_PREFIX = "unsigned."


def use_uint8_activations(model: ir.Model) -> ir.Model:
    """Return the model with uint8 activations instead of int8."""
    graph = model.graph
    for value in _int8_numbers(graph):
        if all(_READS_ZERO_POINT.get(node.op_type) == index for node, index in value.uses()):
            ir.convenience.replace_all_uses_with(value, _zero_point(graph, value))
            del graph.initializers[name_of(value)]
    for node in graph:
        for output in node.outputs:
            if output.dtype == ir.DataType.INT8:
                output.type = ir.TensorType(ir.DataType.UINT8)
    return model


def use_uint8_weights(model: ir.Model) -> ir.Model:
    """Return the model, which has uint8 activations already, with uint8 weights instead of int8.

    Raises :class:`WorkError` for an int8 constant with an unsupported use.
    """
    for weight in _int8_numbers(model.graph):
        _move_weight(model.graph, weight)
    return model


def _int8_numbers(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.initializers.values() if value.dtype == ir.DataType.INT8]


def _zero_point(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return the uint8 zero point for the int8 zero point ``value``, of the same shape."""
    assert value.const_value is not None
    if value.const_value.numpy().any():
        raise WorkError(f"the zero point {value.name} is not 0: the grid is not symmetric")
    return _zeros(graph, value.const_value.shape.numpy())


def _zeros(graph: ir.Graph, shape: Sequence[int]) -> ir.Value:
    name = f"{_PREFIX}zero_point" + "".join(f".{size}" for size in shape)
    return graph.initializers.get(name) or add_constant(graph, name, np.full(shape, OFFSET, np.uint8))


def _move_weight(graph: ir.Graph, weight: ir.Value) -> None:
    """Make the nodes that read ``weight`` read it as uint8 with the matching zero point."""
    name = f"{_PREFIX}offset"
    offset = graph.initializers.get(name) or add_constant(graph, name, np.array(OFFSET, np.int32))
    uses = list(weight.uses())
    wide = ir.node("Cast", [weight], {"to": ir.DataType.INT32.value})
    moved = ir.node("Add", [wide.outputs[0], offset])
    narrow = ir.node("Cast", [moved.outputs[0]], {"to": ir.DataType.UINT8.value})
    for made, dtype in ((wide, ir.DataType.INT32), (moved, ir.DataType.INT32), (narrow, ir.DataType.UINT8)):
        made.outputs[0].type = ir.TensorType(dtype)
    graph.insert_before(graph[0], [wide, moved, narrow])
    for node, index in uses:
        match (node.op_type, index):
            case ("DequantizeLinear", 0):
                scale = node.inputs[1]
                assert scale is not None
                assert scale.shape is not None
                _set_input(node, 2, _zeros(graph, scale.shape.numpy()))
            case ("MatMulIntegerToFloat", 1):
                _set_input(node, 5, _zeros(graph, ()))
            case _:
                raise WorkError(f"{node.op_type} {node.name} reads the int8 weight {weight.name}")
        node.replace_input_with(index, narrow.outputs[0])


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
