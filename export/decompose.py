"""Decompose the operators of a traced program one by one, where they stand.

``ExportedProgram.run_decompositions`` traces the whole program again, with symbolic sizes, which takes longer
than the first trace; the exporter has its own translation of nearly every operator in it. Rules, which are
those of ``run_decompositions``:
- an operator of the table is decomposed;
- so is one that is defined by others and may return a view of its input (reshape, to, chunk);
- every other one stays as it is;
- a program that writes to a tensor in place is left to ``run_decompositions``, which rewrites that.
"""

from __future__ import annotations

import operator
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
                outputs = _expand(node, table)
                _replace(node, outputs)
                if isinstance(outputs, fx.Node):
                    program.graph_signature.replace_all_uses(node.name, outputs.name)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_defined_by_views(target: OpOverload) -> bool:
    if not target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return False
    aliases = any(argument.alias_info is not None for argument in target._schema.arguments)
    return aliases or torch.Tag.maybe_aliasing_or_mutating in target.tags


def _expand(node: fx.Node, table: Table) -> Any:
    """Put the operators that ``node`` consists of before it; returns what gives its output or outputs."""
    inputs, function = node.all_input_nodes, node.target
    assert isinstance(function, OpOverload)

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args: Any = fx.map_arg(node.args, given.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, given.__getitem__)
        return function(*args, **kwargs)

    traced = make_fx(call, dict(table))(*(value.meta["val"] for value in inputs))
    parts = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
    with node.graph.inserting_before(node):
        for part in traced.graph.nodes:
            if part.target == torch.ops.aten.sym_numel.default:
                parts[part] = _count(parts[part.args[0]])
            elif part.op == "call_function":
                parts[part] = node.graph.node_copy(part, parts.__getitem__)
                parts[part].meta = {**node.meta, "val": part.meta["val"]}
    return fx.map_arg(traced.graph.output_node().args[0], parts.__getitem__)


def _count(tensor: fx.Node) -> fx.Node:
    """The number of elements as a product of sizes: the exporter has no translation of ``sym_numel``."""

    def add(function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        node = tensor.graph.call_function(function, args)
        node.meta = {**tensor.meta, "val": value}
        return node

    shape = tensor.meta["val"].shape
    count, value = add(torch.ops.aten.sym_size.int, (tensor, 0), shape[0]), shape[0]
    for axis, size in enumerate(shape[1:], 1):
        value = value * size
        count = add(operator.mul, (count, add(torch.ops.aten.sym_size.int, (tensor, axis), size)), value)
    return count


def _replace(node: fx.Node, outputs: Any) -> None:
    """Let ``outputs`` be used in the place of ``node``, a list of them in the place of its items."""
    if isinstance(outputs, fx.Node):
        node.replace_all_uses_with(outputs)
    else:
        for item in list(node.users):
            item.replace_all_uses_with(outputs[item.args[1]])
            node.graph.erase_node(item)
    node.graph.erase_node(node)
