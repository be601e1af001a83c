"""Shapes that the tracer takes long to work out with symbolic sizes, given at once.

A group normalization has the shape of its input, but the tracer computes statistics, views and strides in
symbols to find that out: it takes fifteen times as long as an addition. Rules:
- while a module is traced, such a function is recorded as a stand-in with the same arguments, an operator
  that has a shape and no kernel; afterwards the stand-in gets the name of the operator that it stands for;
- while the exporter goes over the traced program, it is told the shapes of the same operators;
- dropout, which does nothing in use, is not recorded at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
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
"""What an empty result of each operator is."""


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
    """An expansion: the exporter's own translation of ``repeat_interleave`` fails for a dynamic number of
    repeats and more than one row."""
    sizes = [-1] * tensor.ndim
    expanded = tensor.unsqueeze(dim + 1).expand(*sizes[: dim + 1], repeats, *sizes[dim + 1 :])
    return expanded.flatten(dim, dim + 1)


class _Replaced(TorchFunctionMode):
    """Functions are answered by others."""

    def __init__(self, functions: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.functions.get(function, function)(*args, **kwargs or {})


def short_trace() -> TorchFunctionMode:
    """What a module is traced under; :func:`name_stand_ins` has to follow."""
    return _Replaced(
        {
            torch.Tensor.repeat_interleave: _repeat,
            F.dropout: _dropout,
            F.linear: _STAND_INS[_ATEN.linear.default],
            F.group_norm: _STAND_INS[_ATEN.group_norm.default],
            F.layer_norm: _STAND_INS[_ATEN.layer_norm.default],
        }
    )


def name_stand_ins(program: ExportedProgram) -> None:
    """Make the operators of ``program`` those that are meant."""
    for node in program.graph.nodes:
        node.target = _MEANT.get(node.target, node.target)


def short_shapes() -> TorchFunctionMode:
    """What the exporter goes over a program under: it asks for shapes and uses no number."""
    return _Replaced(_SHAPES)
