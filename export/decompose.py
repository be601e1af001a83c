"""Decompose the operators of a traced program one by one, in place.

``ExportedProgram.run_decompositions`` traces the whole program again, with symbolic sizes, which takes longer
than the first trace; the exporter has its own translation of nearly every operator in it. Rules, which are
those of ``run_decompositions``:
- an operator of the table is decomposed;
- so is one that is defined by others and may return a view of its input (reshape, to, chunk);
- every other one stays as it is;
- a program that writes to a tensor in place is left to ``run_decompositions``, which rewrites that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from controlnext.export.shortcuts import known_values, short_shapes

Table = Mapping[Any, Callable[..., Any]]
"""Decompositions by operator."""
Sizes = dict[Any, fx.Node]
"""Nodes that compute a size, by its symbolic expression; each size is computed only once."""
_ATEN = torch.ops.aten


@contextmanager
def decomposed_in_place(program: ExportedProgram) -> Iterator[None]:
    """Make the exporter decompose ``program`` by these rules during the block."""
    if any(_mutates(node) for node in program.graph.nodes):
        yield
        return
    # the exporter calls it with a table of the operators that it has no translation for
    program.run_decompositions = partial(_decompose, program)  # type: ignore[method-assign]
    with short_shapes(), known_values():
        yield


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _decompose(program: ExportedProgram, table: Table) -> ExportedProgram:
    graph = program.graph_module.graph
    fake = detect_fake_mode([node.meta.get("val") for node in graph.find_nodes(op="placeholder")])
    sizes: Sizes = {}
    with fake or nullcontext(), enable_python_dispatcher():
        for node in list(graph.nodes):
            if isinstance(value := node.meta.get("val"), torch.SymInt):
                sizes.setdefault(value.node.expr, node)
            if node.target == _ATEN.reshape.default:
                _view(node)
            elif node.target == _ATEN.contiguous.default:
                _copy(node)
            elif node.target in table or _is_defined_by_views(node.target):
                outputs = _expand(node, table, sizes)
                _replace(node, outputs)
                if isinstance(outputs, fx.Node):
                    program.graph_signature.replace_all_uses(node.name, outputs.name)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_defined_by_views(target: Any) -> bool:
    if not isinstance(target, OpOverload) or not target.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        return False
    aliases = any(argument.alias_info is not None for argument in target._schema.arguments)
    return aliases or torch.Tag.maybe_aliasing_or_mutating in target.tags


def _copy(node: fx.Node) -> None:
    """Turn an operator that may copy its input into one that does.

    Whether it has to copy depends on strides, which may differ when the exporter runs the program. In the
    graph a copy is an Identity, which is removed.
    """
    node.target, node.args = _ATEN.clone.default, node.args[:1]
    node.kwargs = {"memory_format": torch.contiguous_format}


def _view(node: fx.Node) -> None:
    """Make a reshape a view of a copy: the exporter translates that as one node."""
    source, wanted = cast("tuple[fx.Node, list[Any]]", node.args)
    with node.graph.inserting_before(node):
        copy = node.graph.create_node("call_function", _ATEN.contiguous.default, (source,))
    copy.meta = {**node.meta, "val": source.meta["val"].clone(memory_format=torch.contiguous_format)}
    _copy(copy)
    # a size of -1 becomes a number unless it is dynamic
    sizes = [
        size if given == -1 and isinstance(size, int) else given
        for given, size in zip(wanted, node.meta["val"].shape, strict=True)
    ]
    node.target, node.args = _ATEN.view.default, (copy, sizes)


def _expand(node: fx.Node, table: Table, sizes: Sizes) -> Any:
    """Insert the operators that ``node`` consists of before it; return the nodes of its outputs."""
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
            if part.op != "call_function":
                continue
            value = part.meta["val"]
            size = value.node.expr if isinstance(value, torch.SymInt) else None
            if size in sizes:
                parts[part] = sizes[size]
            else:
                parts[part] = node.graph.node_copy(part, parts.__getitem__)
                parts[part].meta = {**node.meta, "val": value}
                if size is not None:
                    sizes[size] = parts[part]
    return fx.map_arg(traced.graph.output_node().args[0], parts.__getitem__)


def _replace(node: fx.Node, outputs: Any) -> None:
    """Replace ``node`` by ``outputs``, or its items by a list of them."""
    if isinstance(outputs, fx.Node):
        node.replace_all_uses_with(outputs)
    else:
        for item in list(node.users):
            item.replace_all_uses_with(outputs[item.args[1]])
            node.graph.erase_node(item)
    node.graph.erase_node(node)
