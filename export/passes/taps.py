"""Add outputs that tell how the values of a graph are distributed.

Rules:
- every named value gets three further outputs: ``<name>:sample``, every 61st of its numbers in one row, at
  most 65,536 of them, ``<name>:largest``, the largest magnitude of all, and ``<name>:size``, how many there
  are;
- the graph computes what it computed: these outputs only read.

Whole activations of a large denoiser do not fit in memory; a sample of each does, and the grid that suits the
sample suits the whole.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from controlnext.export.passes.constants import add_constant

SAMPLE, LARGEST, SIZE = ":sample", ":largest", ":size"
STRIDE, LIMIT = 61, 65536


def tap(model: ir.Model, names: Collection[str]) -> ir.Model:
    """The model with the three outputs of every value in ``names``."""
    graph = model.graph
    values = {f"{value.name}": value for node in graph for value in node.outputs}
    values |= {f"{value.name}": value for value in graph.inputs}
    row, start, end, axis, stride = (
        add_constant(graph, f"tap.{name}", np.array([number]))
        for name, number in (
            ("row", -1),
            ("start", 0),
            ("end", STRIDE * LIMIT),
            ("axis", 0),
            ("stride", STRIDE),
        )
    )
    for name in names:
        flat = _append(graph, "Reshape", [values[name], row])
        sample = _append(graph, "Slice", [flat, start, end, axis, stride])
        magnitudes = _append(graph, "Abs", [flat])
        largest = _append(graph, "ReduceMax", [magnitudes], ir.AttrInt64("keepdims", 0))
        size = _append(graph, "Size", [flat])
        kind = values[name].type
        counts = ir.TensorType(ir.DataType.INT64)
        for output, suffix, dtype in ((sample, SAMPLE, kind), (largest, LARGEST, kind), (size, SIZE, counts)):
            output.name, output.type = f"{name}{suffix}", dtype
            graph.outputs.append(output)
    return model


def _append(graph: ir.Graph, operator: str, inputs: list[ir.Value], *attributes: ir.Attr) -> ir.Value:
    node = ir.Node("", operator, inputs, attributes)
    graph.append(node)
    return node.outputs[0]
