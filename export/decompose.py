"""Decompose the operators of a traced program one by one, where they stand.

``ExportedProgram.run_decompositions`` traces the whole program again, with symbolic sizes, which takes longer
than the first trace; the exporter has its own translation of nearly every operator in it. Rules, which are
those of ``run_decompositions``:
- an operator of the table is decomposed;
- so is one that is defined by others and may return a view of its input (reshape, to, chunk, dropout);
- every other one stays as it is;
- a program that writes to a tensor in place is left to ``run_decompositions``, which rewrites that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from controlnext.export.shortcuts import short_shapes

Table = Mapping[Any, Callable[..., Any]]
"""Decompositions by operator."""


@contextmanager
def decomposed_in_place(program: ExportedProgram) -> Iterator[None]:
    """In this block the exporter finds that ``program`` decomposes as these rules say."""
    if any(_mutates(node) for node in program.graph.nodes):
        yield
        return
    # the exporter calls it with a table of the operators that it has no translation for
    program.run_decompositions = partial(_decompose, program)  # type: ignore[method-assign]
    with short_shapes():
        yield


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _decompose(program: ExportedProgram, table: Table) -> ExportedProgram:
    graph = program.graph_module.graph
    fake = detect_fake_mode([node.meta.get("val") for node in graph.find_nodes(op="placeholder")])
    with fake or nullcontext(), enable_python_dispatcher():
        for node in [node for node in graph.nodes if isinstance(node.target, OpOverload)]:
            if node.target in table or _is_defined_by_views(node.target):
                _expand(node, table)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_defined_by_views(operator: OpOverload) -> bool:
    if not operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return False
    aliases = any(argument.alias_info is not None for argument in operator._schema.arguments)
    return aliases or torch.Tag.maybe_aliasing_or_mutating in operator.tags


def _expand(node: fx.Node, table: Table) -> None:
    """Put the operators that ``node`` consists of in its place."""
    inputs = node.all_input_nodes

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = (fx.map_arg(part, given.__getitem__) for part in (node.args, node.kwargs))
        return node.target(*args, **kwargs)

    traced = make_fx(call, dict(table))(*(value.meta["val"] for value in inputs))
    parts = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
    with node.graph.inserting_before(node):
        for part in traced.graph.nodes:
            if part.op == "call_function":
                parts[part] = node.graph.node_copy(part, parts.__getitem__)
                parts[part].meta = {**node.meta, "val": part.meta["val"]}
    _replace(node, fx.map_arg(traced.graph.output_node().args[0], parts.__getitem__))


def _replace(node: fx.Node, outputs: Any) -> None:
    """Let ``outputs`` be used in the place of ``node``, a list of them in the place of its items."""
    if isinstance(outputs, fx.Node):
        node.replace_all_uses_with(outputs)
    else:
        for item in list(node.users):
            item.replace_all_uses_with(outputs[item.args[1]])
            node.graph.erase_node(item)
    node.graph.erase_node(node)
