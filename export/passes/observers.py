"""Add outputs that sample the values of a graph.

Rules:
- every named value gets three further outputs: ``<name>:sample``, every 61st of its numbers in one row, at
  most 65,536 of them, ``<name>:largest``, the largest magnitude of all, and ``<name>:size``, their
  number;
- the results of the graph do not change: these outputs only read;
- the readers of a value are right behind its producer: in this order no value has to stay in memory for them.

Whole activations of a large denoiser do not fit in memory; a sample of each does, and the grid that suits the
sample suits the whole.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from controlnext.export.passes.constants import add_constant
from controlnext.export.passes.names import name_of

SAMPLE, LARGEST, SIZE = ":sample", ":largest", ":size"
STRIDE, LIMIT = 61, 65536


def observe(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Return the model with the three outputs of every value in ``names``."""
    graph = model.graph
    values = {name_of(value): value for node in graph for value in node.outputs}
    values |= {name_of(value): value for value in graph.inputs}
    row, start, end, axis, stride = (
        add_constant(graph, f"observed.{name}", np.array([number]))
        for name, number in (
            ("row", -1),
            ("start", 0),
            ("end", STRIDE * LIMIT),
            ("axis", 0),
            ("stride", STRIDE),
        )
    )
    for name in names:
        value = values[name]
        place = value.producer() or graph[0]
        flat = ir.node("Reshape", [value, row])
        sample = ir.node("Slice", [flat.outputs[0], start, end, axis, stride])
        magnitudes = ir.node("Abs", [flat.outputs[0]])
        largest = ir.node("ReduceMax", [magnitudes.outputs[0]], {"keepdims": 0})
        size = ir.node("Size", [flat.outputs[0]])
        graph.insert_after(place, [flat, sample, magnitudes, largest, size])
        counts = ir.TensorType(ir.DataType.INT64)
        for node, suffix, dtype in (
            (sample, SAMPLE, value.type), (largest, LARGEST, value.type), (size, SIZE, counts),
        ):  # fmt: skip
            node.outputs[0].name, node.outputs[0].type = f"{name}{suffix}", dtype
            graph.outputs.append(node.outputs[0])
    return model
