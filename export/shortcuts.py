"""Shortcuts for shapes that the tracer is slow to compute with symbolic sizes.

A group normalization has the shape of its input, but the tracer computes statistics, views and strides in
symbols to find it: it takes fifteen times as long as an addition. Rules:
- while a module is traced, such a function is recorded as a stand-in with the same arguments, an operator
  that has a shape and no kernel; afterwards each stand-in is replaced by its operator;
- while the exporter runs over the traced program, it gets the shapes of the same operators;
- dropout, which does nothing in inference, is not recorded;
- the exporter runs over the program once more to promote operands of different types; the results of nodes
  are known by then, and the cast of an operand does not change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.onnx._internal.fx.passes import type_promotion
from torch.overrides import TorchFunctionMode

_ATEN = torch.ops.aten
_LIBRARY = torch.library.Library("controlnext", "DEF")


def _linear(input: Tensor, weight: Tensor, *_rest: Any, **_named: Any) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


def _norm(input: Tensor, *_rest: Any, **_named: Any) -> Tensor:
    return input.new_empty(input.shape)


_SHAPES: Mapping[Any, Callable[..., Tensor]] = {
    _ATEN.linear.default: _linear,
    _ATEN.group_norm.default: _norm,
    _ATEN.layer_norm.default: _norm,
}
"""A function for each operator that returns an empty result of its shape."""


def _stand_in(operator: Any) -> Any:
    schema = str(operator._schema).removeprefix("aten::")
    name = _LIBRARY.define(schema)
    torch.library.register_fake(f"controlnext::{name}", _SHAPES[operator], lib=_LIBRARY)
    return getattr(torch.ops.controlnext, name).default


_STAND_INS = {operator: _stand_in(operator) for operator in _SHAPES}
_MEANT = {stand_in: operator for operator, stand_in in _STAND_INS.items()}


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return F.dropout(input, p, training, inplace) if training else input


def _repeat(tensor: Tensor, repeats: int, dim: int, output_size: int | None = None) -> Tensor:  # noqa: ARG001
    """Repeat by an expansion.

    The exporter's translation of ``repeat_interleave`` fails for a dynamic number of repeats and more than
    one row.
    """
    sizes = [-1] * tensor.ndim
    expanded = tensor.unsqueeze(dim + 1).expand(*sizes[: dim + 1], repeats, *sizes[dim + 1 :])
    return expanded.flatten(dim, dim + 1)


class _Replaced(TorchFunctionMode):
    """A mode that replaces functions by others; ``called`` is told of each call of one."""

    def __init__(
        self, functions: Mapping[Any, Callable[..., Any]], called: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.functions, self.called = functions, called

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        replacement = self.functions.get(function)
        if replacement is None:
            return function(*args, **kwargs or {})
        self.called()
        return replacement(*args, **kwargs or {})


COUNTED = (nn.Linear, nn.GroupNorm, nn.LayerNorm)
"""The layers whose calls :func:`short_trace` tells of."""


def short_trace(called: Callable[[], None]) -> TorchFunctionMode:
    """Return the mode to trace a module in; call :func:`name_stand_ins` afterwards.

    ``called`` is called at least once for each layer of :data:`COUNTED` that the trace passes.
    """
    return _Replaced(
        {
            torch.Tensor.repeat_interleave: _repeat,
            F.dropout: _dropout,
            F.linear: _STAND_INS[_ATEN.linear.default],
            F.group_norm: _STAND_INS[_ATEN.group_norm.default],
            F.layer_norm: _STAND_INS[_ATEN.layer_norm.default],
        },
        called,
    )


def name_stand_ins(program: ExportedProgram) -> None:
    """Replace the stand-ins in ``program`` by their operators."""
    for node in program.graph.nodes:
        node.target = _MEANT.get(node.target, node.target)


def short_shapes() -> TorchFunctionMode:
    """Return the mode for the exporter's run over a program, which needs shapes but no values."""
    return _Replaced(_SHAPES)


class _KnownValues(type_promotion._TypePromotionInterpreter):
    """The exporter's type promotion, with shapes and types taken from the nodes' metadata."""

    def run_node(self, n: fx.Node) -> Any:
        rule = type_promotion.get_type_promotion_rule(n, self.type_promotion_table)
        with self._set_current_node(n):
            if rule:
                self._maybe_promote_node(n, rule)
        known = n.op == "call_function" and "val" in n.meta
        return n.meta["val"] if known else fx.Interpreter.run_node(self, n)


@contextmanager
def known_values() -> Iterator[None]:
    """Keep the exporter's type promotion from computing shapes and types again during the block."""
    theirs = type_promotion._TypePromotionInterpreter
    type_promotion._TypePromotionInterpreter = _KnownValues  # type: ignore[misc]
    try:
        yield
    finally:
        type_promotion._TypePromotionInterpreter = theirs  # type: ignore[misc]
