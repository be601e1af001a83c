"""Fuse products of int8 matrices and their bias into ONNX Runtime's own operator.

Rules:
- a MatMul of an activation that was rounded to one int8 grid and an int8 weight becomes a
  MatMulIntegerToFloat, of the domain ``com.microsoft``, with float32 scales;
- activations become uint8 with a zero point of 128: the same grid, in the type of the x86 kernels;
- a bias that is added only to the product becomes an input of it.

ONNX Runtime fuses these operators itself too, but without the bias, which costs a pass over every output.
Only CPUs have kernels.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from controlnext.export.passes.constants import add_constant
from controlnext.export.passes.multihead import DOMAIN
from controlnext.export.passes.unsigned import OFFSET

_ZERO = "products.zero_point"


def fuse_matmul_integer(model: ir.Model) -> ir.Model:
    """Return the model with products of int8 matrices as ONNX Runtime's own operator."""
    graph = model.graph
    found = [node for node in graph if node.op_type == "MatMul" and _is_int8(node)]
    if not found:
        return model
    model.opset_imports[DOMAIN] = 1
    zero = add_constant(graph, _ZERO, np.array(OFFSET, np.uint8))
    for node in found:
        _fuse(graph, node, zero)
    common.RemoveUnusedNodesPass()(model)
    return model


def _fuse(graph: ir.Graph, node: ir.Node, zero: ir.Value) -> None:
    activation, weight = (_made_by(value, "DequantizeLinear") for value in node.inputs)
    assert activation is not None
    assert weight is not None
    source = activation.inputs[0]
    rounding = _made_by(source, "QuantizeLinear")
    assert rounding is not None
    step = rounding.inputs[1]
    rounded = ir.node("QuantizeLinear", [rounding.inputs[0], step, zero])
    last, bias = _with_bias(node)
    inputs = [rounded.outputs[0], weight.inputs[0], step, weight.inputs[1], zero, None, bias]
    product = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN, name=node.name)
    product.outputs[0].type = last.outputs[0].type
    graph.insert_before(last, [rounded, product])
    ir.convenience.replace_all_uses_with(last.outputs[0], product.outputs[0], replace_graph_outputs=True)
    product.outputs[0].name, last.outputs[0].name = last.outputs[0].name, None


def _is_int8(node: ir.Node) -> bool:
    """Return whether a MatMul is one of int8 matrices on symmetric grids.

    The left one has a single scale, the right one a single scale or one for each column.
    """
    activation, weight = (_made_by(value, "DequantizeLinear") for value in node.inputs)
    if activation is None or weight is None:
        return False
    values, rounding = weight.inputs[0], _made_by(activation.inputs[0], "QuantizeLinear")
    if rounding is None or values is None or not values.is_initializer() or values.dtype != ir.DataType.INT8:
        return False
    by_column = weight.attributes.get_int("axis", 1) in (1, -1)
    scales = activation.inputs[1], weight.inputs[1]
    in_float32 = all(value is not None and value.dtype == ir.DataType.FLOAT for value in scales)
    return (
        by_column
        and in_float32
        and not weight.inputs[2:]
        and _is_symmetric(rounding)
        and _is_symmetric(activation)
    )


def _is_symmetric(node: ir.Node) -> bool:
    """Return whether the zero point of an int8 grid is 0."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    value = None if zero is None else zero.const_value
    return (
        value is not None
        and value.dtype == ir.DataType.INT8
        and not value.numpy().any()
        and value.numpy().ndim == 0
    )


def _with_bias(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """Return the Add of a product and its bias, or the product itself and None."""
    value = node.outputs[0]
    users = value.consumers()
    if len(users) == 1 and users[0].op_type == "Add" and not value.is_graph_output():
        other = next((taken for taken in users[0].inputs if taken is not value), None)
        if (
            other is not None
            and other.is_initializer()
            and other.shape is not None
            and other.shape.rank() == 1
        ):
            return users[0], other
    return node, None


def _made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None
