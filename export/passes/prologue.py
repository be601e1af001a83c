"""Split a denoiser into a graph that runs once an image and one that runs at every step.

Rules:
- values that do not depend on inputs that change from step to step are computed in the ``prologue``, if that
  involves a convolution or a matrix product: keys and values of the prompt, the control module before it
  meets the timestep;
- everything else stays in the ``step``, cheap operations on sizes too, so that few values are passed on;
- the outputs of the prologue are inputs of the step with the same names; other inputs and all outputs are
  those of the model, if they are used.

Both refer to the weights of the model: written into the same directory they need no weights of their own.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common

from controlnext.errors import WorkError
from controlnext.export.passes.dimensions import rank_of
from controlnext.export.passes.names import name_of
from controlnext.export.passes.simplify import infer_types

COSTLY = frozenset({"Conv", "Gemm", "MatMul"})


def split_prologue(model: ir.Model, changing: Collection[str]) -> tuple[ir.Model, ir.Model]:
    """Return ``prologue`` and ``step`` of a model whose inputs ``changing`` are new at every step.

    Raises :class:`WorkError` if nothing can be computed once.
    """
    names = _handed_over(model.graph, changing)
    if not names:
        raise WorkError(f"every costly operation of the graph depends on {', '.join(sorted(changing))}")
    model = infer_types(model)
    prologue, step = model.clone(), model.clone()
    values = _values(prologue.graph)
    prologue.graph.outputs.clear()
    for name in names:
        values[name].shape = ir.Shape([None] * rank_of(values[name]))
        prologue.graph.outputs.append(values[name])
    _take_as_inputs(step.graph, names)
    for part in (prologue, step):
        common.RemoveUnusedNodesPass()(part)
        unused = [value for value in part.graph.inputs if not value.uses()]
        for value in unused:
            part.graph.inputs.remove(value)
    return prologue, step


def _handed_over(graph: ir.Graph, changing: Collection[str]) -> list[str]:
    """Return the values computed once and used at every step, in the order of their computation."""
    stepwise = {value for value in graph.inputs if value.name in changing}
    inputs = set(graph.inputs) - stepwise
    # values computed from constant inputs; True for costly ones
    once: dict[ir.Value, bool] = {}
    used: set[ir.Value] = set()
    for node in graph:
        assert not any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        taken = [value for value in node.inputs if value is not None]
        if not stepwise.isdisjoint(taken):
            stepwise.update(node.outputs)
            used.update(value for value in taken if once.get(value))
        elif any(value in inputs or value in once for value in taken):
            costly = node.op_type in COSTLY or any(once.get(value) for value in taken)
            once.update(dict.fromkeys(node.outputs, costly))
    return [name_of(value) for value in once if value in used]


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    return {name_of(value): value for node in graph for value in node.outputs}


def _take_as_inputs(graph: ir.Graph, names: Collection[str]) -> None:
    values = _values(graph)
    for name in names:
        value = values[name]
        taken = ir.Value(name=name, type=value.type, shape=ir.Shape([None] * rank_of(value)))
        value.name = None
        ir.convenience.replace_all_uses_with(value, taken)
        graph.inputs.append(taken)
