"""Splits a denoiser into what runs once an image and what runs at every step; and off either its sinusoids.

Rules of the first:
- what does not depend on inputs that change from step to step is computed once, if that involves a
  convolution or a matrix product: keys and values of the prompt, the control module before it meets the
  timestep;
- it is handed over at the last tensors on its way that have names in the ONNX graph, so that the shallow
  part, another file, takes the same ones;
- sizes are not handed over: the step reads them of what it takes.

ONNX Runtime's form of a denoiser is split by the same rules during the export; OpenVINO has not all operators
of that form, and reads ``model.onnx``.

The sinusoids of times and sizes have to be in float32: OpenVINO would multiply their arguments in bfloat16,
in which a timestep of 500 times a frequency is wrong by a whole radian. What is split off is what sines and
cosines are computed of, and the operations that only arrange them.

Functions take ``openvino.Model``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_COSTLY = frozenset({"Convolution", "GroupConvolution", "MatMul"})
_WAVES = frozenset({"Sin", "Cos"})
_ATTENTION = "ScaledDotProductAttention"
_ARRANGING = frozenset({"Concat", "Slice", "StridedSlice", "Split", "VariadicSplit", "Unsqueeze", "Squeeze"})


def handed_over(model: Any, changing: Collection[str]) -> list[str]:
    """Return the names of the tensors that are computed once, for inputs ``changing`` at every step."""
    costly = _costly_once(model, changing)
    found: set[str] = set()
    seen: set[int] = set()
    waiting = list(model.get_results())
    while waiting:
        for value in waiting.pop().input_values():
            source = value.get_node()
            key = source.get_instance_id()
            if key in costly and value.get_names():
                found.add(min(value.get_names()))
            elif key not in seen:
                seen.add(key)
                waiting.append(source)
    return sorted(found)


def sinusoids(model: Any) -> list[str]:
    """Return the names of the tensors that are sines and cosines, arranged as the rest of the graph takes
    them."""
    inside: dict[int, Any] = {}
    for node in model.get_ordered_ops():
        sources = [value.get_node() for value in node.input_values()]
        varying = [one for one in sources if one.get_type_name() != "Constant"]
        arranges = node.get_type_name() in _ARRANGING and varying
        if node.get_type_name() in _WAVES or (
            arranges and all(one.get_instance_id() in inside for one in varying)
        ):
            inside[node.get_instance_id()] = node
    found: set[str] = set()
    for node in inside.values():
        value = node.output(0)
        takers = {target.get_node().get_instance_id() for target in value.get_target_inputs()}
        if not takers <= inside.keys() and value.get_names():
            found.add(min(value.get_names()))
    return sorted(found)


def inputs_of(model: Any, name: str) -> set[str]:
    """Return the names of the inputs that the tensor ``name`` depends on."""
    needed = _ancestors([_named(model, [name])[name].get_node()])
    parameters = [one for one in model.get_parameters() if one.get_instance_id() in needed]
    return {parameter.output(0).get_any_name() for parameter in parameters}


def confuses_heads(model: Any) -> bool:
    """Return whether an attention of ``model``, whose shapes are fixed, has as many heads as queries.

    OpenVINO 2026.4 then takes one for the other in bfloat16, and the result is wrong.
    """
    attentions = (one for one in model.get_ordered_ops() if one.get_type_name() == _ATTENTION)
    shapes = [one.input_value(0).get_partial_shape() for one in attentions]
    return any(len(shape) == 4 and shape[1] == shape[2] for shape in shapes)


def _costly_once(model: Any, changing: Collection[str]) -> set[int]:
    """Return the ids of the operations that need not run at every step and cost something."""
    stepwise: set[int] = set()
    # computed from inputs that stay; True for what costs something
    once: dict[int, bool] = {}
    for node in model.get_ordered_ops():
        key, kind = node.get_instance_id(), node.get_type_name()
        if kind == "Parameter":
            if node.output(0).get_names() & set(changing):
                stepwise.add(key)
            else:
                once[key] = False
            continue
        sources = {value.get_node().get_instance_id() for value in node.input_values()}
        if not stepwise.isdisjoint(sources):
            stepwise.add(key)
        elif not once.keys().isdisjoint(sources):
            once[key] = kind in _COSTLY or (kind != "ShapeOf" and any(once.get(one) for one in sources))
    return {key for key, costs in once.items() if costs}


def prologue_of(model: Any, names: Collection[str]) -> Any:
    """Return a model of its own that computes the tensors ``names`` of ``model``, in their order."""
    import openvino as ov

    copy = model.clone()
    values = _named(copy, names)
    results = [ov.op.Result(values[name]) for name in names]
    needed = _ancestors(results)
    parameters = [one for one in copy.get_parameters() if one.get_instance_id() in needed]
    return ov.Model(results, parameters, "prologue")


def with_inputs(model: Any, names: Collection[str]) -> Any:
    """Return ``model`` itself after making the tensors ``names`` its inputs: it computes them no more.

    Names that it has not are passed over, and inputs that nothing reads any more are removed.
    """
    import openvino as ov

    for name, value in _named(model, names).items():
        taken = ov.op.Parameter(value.get_element_type(), value.get_partial_shape())
        for target in value.get_target_inputs():
            target.replace_source_output(taken.output(0))
        value.get_tensor().set_names(set())
        taken.output(0).get_tensor().set_names({name})
        model.add_parameters([taken])
    for parameter in model.get_parameters():
        if not parameter.output(0).get_target_inputs():
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def _named(model: Any, names: Collection[str]) -> dict[str, Any]:
    wanted, found = set(names), {}
    for node in model.get_ordered_ops():
        for value in node.outputs():
            found.update(dict.fromkeys(wanted & value.get_names(), value))
    return found


def _ancestors(nodes: Collection[Any]) -> set[int]:
    seen: set[int] = set()
    waiting = list(nodes)
    while waiting:
        for value in waiting.pop().input_values():
            source = value.get_node()
            if source.get_instance_id() not in seen:
                seen.add(source.get_instance_id())
                waiting.append(source)
    return seen
