"""Graph passes: model in, model out. One pass a file, with its rules in the docstring."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from controlnext.export.passes.dimensions import name_dimensions
from controlnext.export.passes.groups import fuse_groups
from controlnext.export.passes.matmul_integer import fuse_matmul_integer
from controlnext.export.passes.multihead import fuse_attention
from controlnext.export.passes.names import name_nodes
from controlnext.export.passes.precision import lower_to_float16
from controlnext.export.passes.prologue import split_prologue
from controlnext.export.passes.quantize import quantize
from controlnext.export.passes.shallow import cut_shallow, without_outputs
from controlnext.export.passes.simplify import infer_types, simplify
from controlnext.export.passes.unsigned import use_uint8_activations, use_uint8_weights
from controlnext.tensor_spec import TensorSpec
from controlnext.types import Precision

__all__ = [
    "cut_shallow",
    "finish_graph",
    "fuse_attention",
    "fuse_groups",
    "fuse_matmul_integer",
    "lower_to_float16",
    "name_dimensions",
    "name_nodes",
    "quantize",
    "simplify",
    "split_prologue",
    "use_uint8_activations",
    "use_uint8_weights",
    "without_outputs",
]


def finish_graph(
    model: ir.Model,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    precision: Precision,
    float32: Collection[str] = (),
) -> ir.Model:
    """Run the passes that turn a traced graph into the final one.

    Precision comes first: it depends on the module scopes in the nodes' metadata, and later passes merge
    nodes of different scopes.
    """
    model = infer_types(model)
    if precision == Precision.FP16:
        model = lower_to_float16(model, float32)
    model = simplify(model)
    model = infer_types(model)
    model = name_dimensions(model, inputs, outputs)
    return name_nodes(model)
