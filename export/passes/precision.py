"""Lower a float32 graph to float16 inside, float32 at the edges.

Rules:
- inputs and outputs of the graph stay float32; a Cast is added behind and before them;
- nodes inside a named module scope, or that match a pattern of their module's path and operator
  (``*.layer.[01]/Add``), stay float32 together with their constants, and so does what only feeds them by
  moving or creating data (reshaping the timestep, counting elements), except for gathering rows of a table;
  Casts are added around them;
- every other float32 value, constant and parameter becomes float16; constants beyond its range are clamped
  to it (an attention mask's "minus infinity" stays finite);
- inputs that an operator requires in float32 (the scales of Resize) stay.

The trace itself is float32: traced in float16, concatenation promotes types silently.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from controlnext.errors import WorkError
from controlnext.export.passes.names import module_scopes

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_MOVES = {
    "Cast", "CastLike", "Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "Range",
    "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that are float32 for every data type of the operator."""
_ANY_TYPE = ("Shape", "Size")
"""Operators that read only the shape."""


def lower_to_float16(model: ir.Model, float32: Collection[str] = ()) -> ir.Model:
    """Return the model in float16, except for the nodes that match ``float32``.

    Its entries are last names of scopes, or patterns of ``path/operator``. Needs the type of every value.
    Raises :class:`WorkError` for an entry that matches no node, so that an outdated rule is noticed.
    """
    _separate_constants(model.graph)
    kept = _float32_nodes(model.graph, float32)
    for value in model.graph.initializers.values():
        if value.dtype == _FLOAT and not _only_feeds(value, kept):
            _lower_initializer(value)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(model.graph):
        _cast_inputs(node, node in kept, casts)
        if node not in kept:
            _lower_node(node)
    _raise_outputs(model.graph)
    return model


def _separate_constants(graph: ir.Graph) -> None:
    """Give every use of a float32 constant its own node: the uses may get different precisions."""
    for node in [node for node in graph if node.op_type == "Constant" and node.outputs[0].dtype == _FLOAT]:
        for user, index in list(node.outputs[0].uses())[1:]:
            copy = ir.Node("", "Constant", [], list(node.attributes.values()))
            copy.outputs[0].type = node.outputs[0].type
            node.append(copy)
            user.replace_input_with(index, copy.outputs[0])


def _float32_nodes(graph: ir.Graph, rules: Collection[str]) -> set[ir.Node]:
    kept: set[ir.Node] = set()
    found: set[str] = set()
    for node in graph:
        applied = {rule for rule in rules if _applies(rule, node)}
        if applied:
            kept.add(node)
            found |= applied
    if missing := sorted(set(rules) - found):
        raise WorkError(f"no node of the graph lies in {missing}, which the registry keeps in float32")
    for node in reversed(list(graph)):
        if _moves(node) and all(_only_feeds(value, kept) for value in node.outputs):
            kept.add(node)
    return kept


def _applies(rule: str, node: ir.Node) -> bool:
    scopes = module_scopes(node)
    if "/" in rule:
        return bool(scopes) and fnmatchcase(f"{scopes[-1]}/{node.op_type}", rule)
    return any(scope.rpartition(".")[2] == rule for scope in scopes)


def _moves(node: ir.Node) -> bool:
    table = node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    return node.op_type in _MOVES and not table


def _only_feeds(value: ir.Value, nodes: set[ir.Node]) -> bool:
    users = [user for user in value.consumers() if user.op_type not in _ANY_TYPE]
    return bool(users) and not value.is_graph_output() and all(user in nodes for user in users)


def _lower_initializer(value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    value.type = ir.TensorType(_HALF)
    # lazily, since the values of parameters are attached later: see controlnext.export.writer
    value.const_value = ir.LazyTensor(
        lambda: _half(tensor), _HALF, ir.Shape(tensor.shape.numpy()), name=value.name
    )


def _cast_inputs(node: ir.Node, keep: bool, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]) -> None:
    if node.op_type in _ANY_TYPE:
        return
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in (_FLOAT, _HALF):
            continue
        wanted = _FLOAT if keep or index in _FLOAT_INPUTS.get(node.op_type, ()) else _HALF
        if value.dtype == wanted:
            continue
        if (value, wanted) not in casts:
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", wanted.value)])
            cast.outputs[0].type = ir.TensorType(wanted)
            # without a name the graph would continue the numbering of the exporter
            cast.outputs[0].name = f"{value.name}.{'float32' if wanted == _FLOAT else 'float16'}"
            node.prepend(cast)
            casts[(value, wanted)] = cast.outputs[0]
        node.replace_input_with(index, casts[(value, wanted)])


def _lower_node(node: ir.Node) -> None:
    if node.op_type == "Cast" and node.attributes["to"].as_int() == _FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", _HALF.value)
    for name, attribute in list(node.attributes.items()):
        if node.op_type in ("Constant", "ConstantOfShape") and node.outputs[0].dtype == _FLOAT:
            del node.attributes[name]
            node.attributes["value"] = ir.AttrTensor("value", _half(ir.tensor(attribute.value)))
    for value in node.outputs:
        if value.dtype == _FLOAT:
            sequence = isinstance(value.type, ir.SequenceType)
            value.type = ir.SequenceType(ir.TensorType(_HALF)) if sequence else ir.TensorType(_HALF)


def _raise_outputs(graph: ir.Graph) -> None:
    for index, value in enumerate(graph.outputs):
        if value.dtype == _HALF:
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", _FLOAT.value)])
            cast.outputs[0].type = ir.TensorType(_FLOAT)
            graph.append(cast)
            name, value.name = value.name, f"{value.name}.float16"
            cast.outputs[0].name = name
            graph.outputs[index] = cast.outputs[0]


def _half(tensor: ir.TensorProtocol) -> ir.Tensor[np.ndarray]:
    largest = float(np.finfo(np.float16).max)
    return ir.Tensor(tensor.numpy().clip(-largest, largest).astype(np.float16), name=tensor.name)
