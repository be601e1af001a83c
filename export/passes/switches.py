"""Put the int8 form of each layer behind a switch, to measure its effect on the result.

Rules:
- the graph gets one more input, ``switches``, a boolean for each named layer in their order;
- a layer becomes an If: with its switch on it computes with input, weight and, if it has a grid, output
  rounded to int8, and with the switch off as before;
- a normalized layer is normalized with its switch on and off, which does not change the result;
- weights are rounded while the graph runs: only the layers that are switched on take time, and none takes
  memory;
- where the graph transposes a weight, the branches do: outside it would copy each weight.

So one session measures all layers, instead of one session for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from controlnext.bundle.manifest import LayerScales
from controlnext.export.passes.constants import add_constant
from controlnext.export.passes.names import name_of
from controlnext.export.passes.quantize import Layer, layers, normalize, weight_scales

SWITCHES = "switches"


def switch(model: ir.Model, scales: Mapping[str, LayerScales]) -> ir.Model:
    """Return the model with the layers in ``scales`` (by node name, from ``layers``) behind switches."""
    graph = model.graph
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(scales)]))
    graph.inputs.append(switches)
    found = {name_of(layer.node): layer for layer in layers(model)}
    for index, (name, scale) in enumerate(scales.items()):
        node = found[name].node
        if scale.normalized:
            normalize(graph, found[name])
        constants = _constants(graph, found[name], scale, index)
        on = ir.Node("", "Gather", [switches, constants["index"]], name=f"{name}/Gather")
        branches = [
            ir.AttrGraph(branch, _branch(found[name], scale, constants, branch))
            for branch in ("then_branch", "else_branch")
        ]
        choice = ir.Node("", "If", [on.outputs[0]], branches, name=f"{name}/If")
        value = node.outputs[0]
        choice.outputs[0].type = value.type
        graph.insert_after(node, [on, choice])
        ir.convenience.replace_all_uses_with(value, choice.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if value.name is not None:
            choice.outputs[0].name, value.name = value.name, f"{value.name}.off"
    # Transposes of weights
    common.RemoveUnusedNodesPass()(model)
    return model


def _constants(graph: ir.Graph, layer: Layer, scale: LayerScales, index: int) -> dict[str, ir.Value]:
    arrays = {
        "index": np.array(index),
        "zero": np.array(0, np.int8),
        "input": np.array(scale.input, np.float32),
        "weight": weight_scales(layer.values.numpy(), _stored_axis(layer)),
    }
    arrays["zeros"] = np.zeros(arrays["weight"].shape, np.int8)
    if scale.output is not None:
        arrays["output"] = np.array(scale.output, np.float32)
    values = {}
    for key, array in arrays.items():
        name = f"{layer.node.name}.switch.{key}"
        values[key] = add_constant(graph, name, array)
    return values


def _stored_axis(layer: Layer) -> int:
    """Return the axis of the output channels in the weight as it is stored."""
    return 1 - layer.axis if layer.transposed else layer.axis


def _branch(layer: Layer, scale: LayerScales, constants: Mapping[str, ir.Value], name: str) -> ir.Graph:
    node = layer.node
    nodes: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value | None], attributes: list[ir.Attr]) -> ir.Value:
        made = ir.Node("", operator, inputs, attributes)
        made.outputs[0].name = f"{node.name}.{name}.{len(nodes)}"
        nodes.append(made)
        return made.outputs[0]

    def rounded(value: ir.Value, step: ir.Value, zero: ir.Value, *attributes: ir.Attr) -> ir.Value:
        levels = add("QuantizeLinear", [value, step, zero], list(attributes))
        return add("DequantizeLinear", [levels, step, zero], list(attributes))

    inputs = list(node.inputs)
    inputs[1] = layer.weight
    on = name == "then_branch"
    if on:
        assert inputs[0] is not None
        axis = ir.AttrInt64("axis", _stored_axis(layer))
        inputs[0] = rounded(inputs[0], constants["input"], constants["zero"])
        inputs[1] = rounded(layer.weight, constants["weight"], constants["zeros"], axis)
    if layer.transposed:
        inputs[1] = add("Transpose", [inputs[1]], [ir.AttrInt64s("perm", [1, 0])])
    result = add(node.op_type, inputs, list(node.attributes.values()))
    if on and scale.output is not None:
        result = rounded(result, constants["output"], constants["zero"])
    result.type = node.outputs[0].type
    return ir.Graph([], [result], nodes=nodes, name=f"{node.name}.{name}")
