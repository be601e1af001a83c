"""Compute a float16 graph in float32 and round every result to float16, as an accelerator's kernels do.

ONNX Runtime on a processor stores float16 but computes most operators in float32 and drops the rounding in
between: what overflows elsewhere does not overflow there. Rules:
- every float16 value becomes float32; behind the node that makes it a Cast to float16 and one back round it,
  which makes infinities of numbers from 65520 on;
- float16 parameters and constants keep their values, behind a Cast;
- inside an operator everything is float32: tensor cores sum products so, and normalizations have it in their
  ``stash_type``;
- nodes that only move numbers round nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators whose results are numbers that they were given."""

Choice = Callable[[ir.Value], bool]


def is_float16(value: ir.Value) -> bool:
    return value.dtype == _HALF


def emulate_float16(model: ir.Model, rounded: Choice = is_float16) -> ir.Model:
    """The model in float32 but for its parameters, with the float values rounded that ``rounded`` chooses.

    Needs the type of every value. ``rounded`` sees each with the type and the producer that it had before.
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
    """Put Casts to ``types`` between ``value`` and whatever uses it."""
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
