"""Fuse attention into ONNX Runtime's own operator, which never stores the scores of all tokens at once.

Rules:
- an Attention of maps (B, heads, tokens, width) without mask, causality, cap or cache becomes a
  MultiHeadAttention of rows (B, tokens, heads * width), of the domain ``com.microsoft``;
- a map that was made from rows is replaced by these rows; other maps are turned into rows, and the result is
  turned back for users that do not read rows.

At 512 x 512 the scores of one layer of SD1.5 take 1 GB; in blocks they take hardly any memory.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from controlnext.export.passes.constants import add_constant

DOMAIN = "com.microsoft"
_SWAPPED = [0, 2, 1, 3]
_PLAIN = {"qk_matmul_output_mode": 0, "softcap": 0.0, "is_causal": 0}
_ROWS, _MAPS = "attention.rows", "attention.maps"


def fuse_attention(model: ir.Model) -> ir.Model:
    """Return the model with all supported attention as ONNX Runtime's own operator."""
    graph = model.graph
    found = [node for node in graph if node.op_type == "Attention" and _is_plain(node)]
    heads = {node: count for node in found if (count := _heads(node.inputs[0])) is not None}
    if not heads:
        return model
    model.opset_imports[DOMAIN] = 1
    rows = add_constant(graph, _ROWS, np.array([0, 0, -1]))
    for node, count in heads.items():
        inputs = [_rows(graph, node, value, rows) for value in node.inputs[:3]]
        attributes: dict[str, int | float] = {"num_heads": count}
        if "scale" in node.attributes:
            attributes["scale"] = node.attributes["scale"].as_float()
        fused = ir.node("MultiHeadAttention", inputs, attributes, domain=DOMAIN, name=node.name)
        graph.insert_before(node, fused)
        fused.outputs[0].type = node.outputs[0].type
        _replace(graph, node, fused.outputs[0], count)
    common.RemoveUnusedNodesPass()(model)
    return model


def _is_plain(node: ir.Node) -> bool:
    same = all(
        node.attributes[name].value == value for name, value in _PLAIN.items() if name in node.attributes
    )
    return same and not any(node.inputs[3:]) and len(node.outputs) == 1


def _heads(value: ir.Value | None) -> int | None:
    """Return the number of heads of a map, found where it was made from rows; None if unknown."""
    node = value.producer() if value is not None else None
    if node is None or not node.inputs:
        return None
    if node.op_type != "Reshape":
        return _heads(node.inputs[0])
    sizes = _sizes(node.inputs[1])
    return sizes[2] if len(sizes) == 4 else None


def _sizes(shape: ir.Value | None) -> list[int | None]:
    """Return the sizes of a shape, None for computed ones."""
    assert shape is not None
    if shape.const_value is not None:
        return [int(size) for size in shape.const_value.numpy()]
    node = shape.producer()
    if node is None or node.op_type != "Concat":
        return []
    return [size for part in node.inputs for size in _sizes(part) or [None]]


def _rows(graph: ir.Graph, node: ir.Node, value: ir.Value | None, rows: ir.Value) -> ir.Value:
    """Return the map ``value`` as rows."""
    assert value is not None
    swap = value.producer()
    if swap is not None and _swaps(swap):
        source = swap.inputs[0]
        split = source.producer() if source is not None else None
        if split is not None and split.op_type == "Reshape" and len(_sizes(split.inputs[1])) == 4:
            assert split.inputs[0] is not None
            return split.inputs[0]
    swapped = ir.node("Transpose", [value], {"perm": _SWAPPED})
    joined = ir.node("Reshape", [swapped.outputs[0], rows])
    for made in (swapped, joined):
        made.outputs[0].type = value.type
    graph.insert_before(node, [swapped, joined])
    return joined.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, rows: ir.Value, heads: int) -> None:
    """Replace the users of the output of ``node`` by ``rows``."""
    value = node.outputs[0]
    for swap, _ in value.uses():
        joins = [join for join, _ in swap.outputs[0].uses()] if _swaps(swap) else []
        for join in joins:
            if join.op_type == "Reshape" and len(_sizes(join.inputs[1])) == 3:
                ir.convenience.replace_all_uses_with(join.outputs[0], rows, replace_graph_outputs=True)
    # the remaining users read maps
    name = f"{_MAPS}.{heads}"
    sizes = graph.initializers.get(name) or add_constant(graph, name, np.array([0, 0, heads, -1]))
    split = ir.node("Reshape", [rows, sizes])
    maps = ir.node("Transpose", [split.outputs[0]], {"perm": _SWAPPED})
    for made in (split, maps):
        made.outputs[0].type = value.type
    graph.insert_before(node, [split, maps])
    ir.convenience.replace_all_uses_with(value, maps.outputs[0], replace_graph_outputs=True)


def _swaps(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == _SWAPPED
