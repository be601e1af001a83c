"""An int8 graph on unsigned grids: the same numbers, in the forms that processors multiply.

Rules:
- a grid moves up by 128: its values are uint8 and its zero point is 128 instead of 0;
- a weight keeps its int8 values in the file and moves while the graph is loaded, where ONNX Runtime folds it;
- the operators stay.

Activations are uint8 in every form. ONNX Runtime moves them by itself for x86, but not where two nodes read
a grid, and leaves the layer in float32 there. Weights move for processors that get no other product right:
x86 without VNNI multiplies uint8 by int8 in pairs whose sum has 16 bits; 2 x 255 x 127 does not fit and is
cut off at 32767. The sum of two products of uint8 is taken in 32 bits. It takes longer, so where int8 weights
are safe they stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from controlnext.errors import WorkError
from controlnext.export.passes.constants import add_constant
from controlnext.export.passes.names import name_of

OFFSET = 128
"""From an int8 number to the uint8 that stands for it."""

_READS_ZERO_POINT = {"QuantizeLinear": 2, "DequantizeLinear": 2}
_PREFIX = "unsigned."


def use_uint8_activations(model: ir.Model) -> ir.Model:
    """The model with the grids of its activations, zero points of int8, as uint8 ones."""
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
    """The model, of uint8 activations already, with its int8 weights as uint8 ones.

    Raises :class:`WorkError` for an int8 number that it does not know the use of.
    """
    for weight in _int8_numbers(model.graph):
        _move_weight(model.graph, weight)
    return model


def _int8_numbers(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.initializers.values() if value.dtype == ir.DataType.INT8]


def _zero_point(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """What stands for the int8 zero point ``value``, of the same shape."""
    assert value.const_value is not None
    if value.const_value.numpy().any():
        raise WorkError(f"the zero point {value.name} is not 0: the grid is not symmetric")
    return _zeros(graph, value.const_value.shape.numpy())


def _zeros(graph: ir.Graph, shape: Sequence[int]) -> ir.Value:
    name = f"{_PREFIX}zero_point" + "".join(f".{size}" for size in shape)
    return graph.initializers.get(name) or add_constant(graph, name, np.full(shape, OFFSET, np.uint8))


def _move_weight(graph: ir.Graph, weight: ir.Value) -> None:
    """Have the nodes that read ``weight`` read it as uint8, with the zero point that this takes."""
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
