"""Compute a float16 graph in float32 and round every result to float16, as an accelerator's kernels do.

ONNX Runtime on a processor stores float16 but computes most operators in float32 and drops the rounding in
between, so values that overflow on an accelerator do not overflow there. Rules:
- every float16 value becomes float32; a Cast to float16 and one back behind its producer round it, which
  turns magnitudes of at least 65520 into infinities;
- float16 parameters and constants keep their values, behind a Cast;
- inside an operator everything is float32: tensor cores sum products so, and normalizations have it in their
  ``stash_type``;
- the results of nodes that only move numbers are not rounded.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that only move or copy numbers."""

Choice = Callable[[ir.Value], bool]


def is_float16(value: ir.Value) -> bool:
    """Return whether a value is float16."""
    return value.dtype == _HALF


def emulate_float16(model: ir.Model, rounded: Choice = is_float16) -> ir.Model:
    """Return the model in float32 except for parameters, with the values rounded that ``rounded`` selects.

    Needs the type of every value. ``rounded`` gets each value with its original type and producer.
    """
    made = [value for node in model.graph if node.op_type not in MOVES for value in node.outputs]
    chosen = [value for value in made if value.dtype in (_FLOAT, _HALF) and rounded(value)]
    for node in list(model.graph):
        _widen(node)
    for value in list(model.graph.initializers.values()):
        if value.dtype == _HALF:
            _insert_casts(value, model.graph[0].prepend, _FLOAT)
    for value in chosen:
        producer = value.producer()
        assert producer is not None
        _insert_casts(value, producer.append, _HALF, _FLOAT)
    return model


def _widen(node: ir.Node) -> None:
    if node.op_type == "Cast" and node.attributes["to"].as_int() == _HALF:
        node.attributes["to"] = ir.AttrInt64("to", _FLOAT.value)
    if node.op_type in ("Constant", "ConstantOfShape") and node.outputs[0].dtype == _HALF:
        tensor = node.attributes["value"].as_tensor()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype("float32")))
    for value in node.outputs:
        if value.dtype == _HALF:
            value.type = ir.TensorType(_FLOAT)


def _insert_casts(value: ir.Value, insert: Callable[[list[ir.Node]], None], *types: ir.DataType) -> None:
    """Put Casts to ``types`` between ``value`` and its users."""
    uses, output, casts = list(value.uses()), value.is_graph_output(), list[ir.Node]()
    last = value
    for dtype in types:
        casts.append(ir.node("Cast", [last], {"to": dtype.value}))
        last = casts[-1].outputs[0]
        last.type = ir.TensorType(dtype)
    insert(casts)
    for user, index in uses:
        user.replace_input_with(index, last)
    if output:
        graph = casts[0].graph
        assert isinstance(graph, ir.Graph)
        name, value.name = value.name, f"{value.name}.unrounded"
        last.name = name
        graph.outputs[graph.outputs.index(value)] = last
