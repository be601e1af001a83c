"""Give the dimensions of a graph's inputs and outputs the names of its tensor specs.

Rules:
- a dimension that the spec leaves dynamic gets the spec's text (``"batch"``, ``"8*height"``), a fixed one
  its size;
- an input or output whose name or rank differs from its spec is an error;
- shapes of values inside are dropped: they carry the tracer's symbols, and every engine infers its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from controlnext.errors import WorkError
from controlnext.tensor_spec import TensorSpec


def name_dimensions(model: ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> ir.Model:
    """Return the model with named dimensions; raise :class:`WorkError` if graph and specs disagree."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    for values, specs in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        if [value.name for value in values] != [spec.name for spec in specs]:
            raise WorkError(
                f"the graph has {[v.name for v in values]}, the specs say {[s.name for s in specs]}"
            )
        for value, spec in zip(values, specs, strict=True):
            if value.dtype != ir.DataType[_ONNX_TYPES[spec.dtype]]:
                raise WorkError(f"the graph's {value.name} is {value.dtype}, the spec says {spec.dtype}")
            value.shape = ir.Shape(spec.shape)
    return model


def rank_of(value: ir.Value) -> int:
    """Return the number of dimensions of a value, in a model whose types are inferred.

    Type inference does not know the rank of normalizations and of values computed from them; they have the
    rank of their input.
    """
    if value.shape is not None:
        return value.shape.rank()
    node = value.producer()
    assert node is not None
    assert node.inputs[0] is not None
    return rank_of(node.inputs[0])


_ONNX_TYPES = {"float32": "FLOAT", "int64": "INT64"}
