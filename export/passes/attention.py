"""Decompose Attention into the operators of its ONNX definition, to make its inner values visible.

Rules:
- query and key are each multiplied by the root of the scale, as ONNX says and TensorRT's parser does: the
  scores are those that an engine without a fused kernel would store;
- a mask of numbers is added to the scores, one of truth values puts float16's lowest number where it is
  false;
- the nodes carry the name of their Attention with ``.query``, ``.key``, ``.scores``, ``.weights``; the last
  one has the name itself;
- variants that no family uses (key-value caches, soft caps, causal ones, three dimensions) are an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from controlnext.errors import WorkError

_LOWEST = float(np.finfo(np.float16).min)


def decompose_attention(model: ir.Model) -> ir.Model:
    """Return the model without Attention nodes; raise :class:`WorkError` for unsupported variants."""
    for node in list(model.graph):
        if node.op_type == "Attention":
            _check(node)
            parts = _Parts(node)
            query, key, value, *rest = node.inputs
            factor = parts.factor()
            scaled = parts.add("Mul", [query, factor], ".query")
            turned = parts.add("Transpose", [key], perm=(0, 1, 3, 2))
            scores = parts.add("MatMul", [scaled, parts.add("Mul", [turned, factor], ".key")], ".scores")
            if rest and rest[0] is not None:
                scores = parts.mask(scores, rest[0])
            weights = parts.add("Softmax", [scores], ".weights", axis=-1)
            output = parts.add("MatMul", [weights, value])
            assert output.producer() is not None
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], parts.nodes, [node.outputs[0]], [output]
            )
            parts.nodes[-1].name = node.name
    return model


def _check(node: ir.Node) -> None:
    plain = len(node.outputs) == 1 and len(node.inputs) <= 4
    if not plain or any(node.attributes.get_int(name, 0) for name in ("is_causal", "q_num_heads")):
        raise WorkError(f"{node.name} is a variant of Attention that cannot be decomposed")


class _Parts:
    """The nodes that replace an Attention."""

    def __init__(self, node: ir.Node) -> None:
        self.node, self.nodes = node, list[ir.Node]()
        assert node.inputs[0] is not None
        assert node.inputs[0].dtype is not None
        self.dtype = node.inputs[0].dtype

    def add(self, op: str, inputs: list[ir.Value | None], suffix: str = "", **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes or None)
        node.name = f"{self.node.name}{suffix or f'.{op.lower()}'}"
        node.outputs[0].type = ir.TensorType(self.dtype)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, number: float) -> ir.Value:
        return self.add("Constant", [], value=ir.tensor(np.array(number, self.dtype.numpy())))

    def factor(self) -> ir.Value:
        """Return the root of the scale; the default scale is one over the root of the head size."""
        if "scale" in self.node.attributes:
            return self.constant(self.node.attributes["scale"].as_float() ** 0.5)
        size = self.add("Shape", [self.node.inputs[0]], start=3)
        size.type = ir.TensorType(ir.DataType.INT64)
        number = self.add("Cast", [size], to=self.dtype.value)
        return self.add("Pow", [number, self.constant(-0.25)])

    def mask(self, scores: ir.Value, mask: ir.Value) -> ir.Value:
        if mask.dtype == ir.DataType.BOOL:
            return self.add("Where", [mask, scores, self.constant(_LOWEST)], ".masked")
        return self.add("Add", [scores, mask], ".masked")
