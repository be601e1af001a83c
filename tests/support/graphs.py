"""Small graphs for the tests of passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from controlnext.export.passes.names import SCOPES


def graph(text: str, **weights: np.ndarray) -> ir.Model:
    """Make a model from ONNX's text syntax, with initializers as arrays."""
    import onnx.parser

    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}'))
    for name, array in weights.items():
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        model.graph.inputs[:] = [v for v in model.graph.inputs if v.name != name]
        model.graph.initializers[name] = value
    return model


def scoped(model: ir.Model, **scopes: str) -> ir.Model:
    """Set the module of each value's node in its metadata, as the exporter does."""
    for node in model.graph:
        if scope := scopes.get(str(node.outputs[0].name)):
            node.metadata_props[SCOPES] = str(["", *scope.split(" "), "operation"])
    return model


def literal(model: ir.Model | Path) -> ort.InferenceSession:
    """Make a session without graph optimizations, which computes int8 layers in float32."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph = model if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(graph, options)


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, feeds)[0]
