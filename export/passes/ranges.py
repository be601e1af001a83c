"""Add outputs that measure the range of a graph's values, without the values themselves.

Rules:
- for every float32 value that a node computes (neither moves nor casts) the graph measures the largest
  magnitude, and the share of its numbers that are not zero but would be in float16;
- each measure is one number, computed right behind the value: no value stays in memory longer;
- they are two further outputs, ``peaks`` and ``flushed``, one number for each value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from controlnext.export.passes.emulate import MOVES

OUTPUTS = ("peaks", "flushed")

# half of the smallest number that float16 has
_SMALLEST = np.float32(2**-25)
_FLAT = np.array([-1])
_SILENT = MOVES | {"Cast", "Constant", "ConstantOfShape"}


def add_ranges(model: ir.Model) -> list[str]:
    """Add the outputs :data:`OUTPUTS` to ``model``; return the names of the measured values in order.

    A value has the name of its node, with a colon and a number for a node's further outputs.
    """
    values = [
        (f"{node.name}:{index}" if index else str(node.name), value)
        for node in model.graph
        if node.op_type not in _SILENT
        for index, value in enumerate(node.outputs)
        if value.dtype == ir.DataType.FLOAT
    ]
    constants = [ir.node("Constant", [], {"value": ir.tensor(array)}) for array in (_FLAT, _SMALLEST)]
    flat, smallest = (node.outputs[0] for node in constants)
    pairs = [_measure(value, flat, smallest) for _, value in values]
    model.graph[0].prepend(constants)
    for name, measures in zip(OUTPUTS, zip(*pairs, strict=True), strict=True):
        node = ir.node("Concat", list(measures), {"axis": 0})
        model.graph.append(node)
        output = node.outputs[0]
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape([len(values)])
        model.graph.outputs.append(output)
    return [name for name, _ in values]


def _measure(value: ir.Value, flat: ir.Value, smallest: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Add the two measures of ``value``, one number each, right behind it; return them."""
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes or None))
        return nodes[-1].outputs[0]

    size = add("Abs", add("Reshape", value, flat))
    peak = add("ReduceMax", size, keepdims=1)
    lost = add("And", add("Less", size, smallest), add("Cast", size, to=ir.DataType.BOOL.value))
    flushed = add("ReduceMean", add("Cast", lost, to=ir.DataType.FLOAT.value), keepdims=1)
    producer = value.producer()
    assert producer is not None
    producer.append(nodes)
    return peak, flushed
