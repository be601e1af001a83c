"""Remove redundant nodes of the trace, without changing a weight.

Rules:
- constants become initializers, equal subexpressions are merged, unused nodes and identities are removed;
- arithmetic on constants alone is folded, unless a parameter of the network is involved: parameters keep
  their name and shape, so that weights can be streamed into the graph and found again in it;
- splitting into a sequence and taking it apart again becomes one Split (the constant folder does that);
- operations without effect are removed: Slice over a whole axis, Div and Mul by one, Cast to the same type.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxscript.optimizer

from controlnext.errors import WorkError

FOLD_LIMIT = 4096
"""The largest constant, in elements, that is folded: shapes, axes and tables of frequencies."""

WHOLE = 2**31 - 1


def simplify(model: ir.Model) -> ir.Model:
    """Return a model that computes the same with fewer nodes."""
    parameters = set(model.graph.initializers)
    _merge(model)
    onnxscript.optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=FOLD_LIMIT,
        output_size_limit=FOLD_LIMIT,
        should_fold=lambda node: _fold(node, parameters),
    )
    _merge(model)
    for node in list(model.graph):
        if node.inputs and node.inputs[0] is not None and _changes_nothing(node):
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0], replace_graph_outputs=False)
    _merge(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def _fold(node: ir.Node, parameters: set[str]) -> bool | None:
    """Return False to forbid folding, None to leave it to the constant folder's limits."""
    return False if any(value is not None and value.name in parameters for value in node.inputs) else None


def _merge(model: ir.Model) -> None:
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _changes_nothing(node: ir.Node) -> bool:
    if not node.outputs or node.outputs[0].is_graph_output():
        return False
    match node.op_type:
        case "Cast":
            source = node.inputs[0]
            return source is not None and source.dtype == node.attributes["to"].as_int()
        case "Div" | "Mul":
            return _numbers(node, 1) == [1.0]
        case "Slice":
            starts, ends, steps = (_numbers(node, index) for index in (1, 2, 4))
            return bool(ends) and starts == [0] * len(ends) and min(ends) >= WHOLE and set(steps) <= {1}
    return False


def _numbers(node: ir.Node, index: int) -> list[float]:
    """Return the constant input ``index``, flattened; empty if absent, large or not a constant."""
    if index >= len(node.inputs) or (value := node.inputs[index]) is None or value.const_value is None:
        return []
    tensor = value.const_value
    return tensor.numpy().reshape(-1).tolist() if tensor.size <= 8 else []


def infer_types(model: ir.Model) -> ir.Model:
    """Return the model with the type of every value; raise :class:`WorkError` if it does not type-check."""
    common.ShapeInferencePass(check_type=True, strict_mode=True, data_prop=False)(model)
    untyped = [value.name for node in model.graph for value in node.outputs if value.type is None]
    if untyped:
        raise WorkError(f"the graph does not type-check: {len(untyped)} values have no type: {untyped[:5]}")
    return model
