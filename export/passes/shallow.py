"""Cut the shallow part out of a denoiser, which goes on with features that a full step has computed.

Rules:
- the features are outputs of the whole graph; in the shallow part they are inputs, with the same names,
  float32 like all of a graph's inputs;
- a feature that is a difference to what enters the deep part is added to what enters it now;
- what the result does not depend on any more is removed, with inputs and weights;
- a size that is read of an input is read of the first input that has it: the others are then inputs of the
  shallow part only if it needs their values.

The shallow part refers to the weights of the model: written into the same directory it needs none of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from controlnext.export.passes.names import name_of
from controlnext.families import CachedFeature


def cut_shallow(model: ir.Model, cached: Sequence[CachedFeature]) -> ir.Model:
    """Return the shallow part of a model that has the features ``cached`` as outputs."""
    shallow = model.clone()
    graph = shallow.graph
    outputs = {name_of(value): value for value in graph.outputs}
    for one in cached:
        _take_over(graph, outputs[one.spec.name], one)
    common.RemoveUnusedNodesPass()(shallow)
    _read_sizes_of_the_first(graph)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return shallow


def _read_sizes_of_the_first(graph: ir.Graph) -> None:
    """Read each named size of an input from the first one that has it, where a single size is read."""
    places: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            places.setdefault(str(size), (value, axis))
        for node in value.consumers():
            start = node.attributes.get_int("start", 0)
            if node.op_type != "Shape" or node.attributes.get_int("end", 0) != start + 1:
                continue
            assert value.shape is not None
            source, axis = places[str(value.shape[start])]
            node.replace_input_with(0, source)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def without_outputs(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Return the model without the outputs ``names``, and without what only they need."""
    outputs = model.graph.outputs
    for value in [value for value in outputs if value.name in names]:
        outputs.remove(value)
    common.RemoveUnusedNodesPass()(model)
    return model


def _take_over(graph: ir.Graph, output: ir.Value, one: CachedFeature) -> None:
    """Make ``output`` an input, and have the graph go on with it in place of what the deep part computes."""
    taken = ir.Value(name=one.spec.name, type=output.type, shape=output.shape)
    output.name = None
    graph.outputs.remove(output)
    graph.inputs.append(taken)
    # of another type inside, it was cast to the type of outputs
    cast = output.producer()
    inside = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else output
    assert inside is not None
    deep, made = inside, []
    value = taken
    if inside is not output:
        assert inside.dtype is not None
        made.append(ir.node("Cast", [value], {"to": inside.dtype.value}))
        value = made[-1].outputs[0]
    if one.since:
        difference = inside.producer()
        assert difference is not None
        assert difference.op_type == "Sub"
        after, before = difference.inputs
        assert after is not None
        deep = after
        made.append(ir.node("Add", [before, value]))
        value = made[-1].outputs[0]
    for node in made:
        node.outputs[0].type = inside.type
        node.outputs[0].name = f"{one.spec.name}.{node.op_type.lower()}"
        node.name = f"{one.spec.name}/{node.op_type}"
    producer = deep.producer()
    assert producer is not None
    graph.insert_after(producer, made)
    ir.convenience.replace_all_uses_with(deep, value)
