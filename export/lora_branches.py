"""The branches of LoRAs in ONNX: translations of the operators of :mod:`controlnext.models.lora`.

Rules:
- a branch is products alone, which every backend takes with a dynamic rank and a row of matrices for each
  row of the batch; rows that share one have it broadcast by the product itself;
- a convolution's first product gives a map for each rank and each place of the kernel; the maps are shifted,
  by padding and strided slices, and added; the second is a product again;
- the rank may be 0: no size is computed of one that may be 0, and it is the only one left open (-1) in a
  shape that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from onnxscript import opset23 as op

from controlnext.export.passes.simplify import WHOLE

Value = Any


def _ints(*values: int) -> Value:
    return op.Constant(value_ints=list(values))


def _columns(tensor: Value, columns: Sequence[int]) -> Value:
    first, after = columns
    return op.Slice(tensor, _ints(first), _ints(after), _ints(2))


def _turned(tensor: Value) -> Value:
    return op.Transpose(tensor, perm=[0, 2, 1])


def _linear(
    output: Value, source: Value, downs: Value, ups: Value, down: Sequence[int], up: Sequence[int]
) -> Value:
    single = len(source.shape) == 2
    rows = op.Unsqueeze(source, _ints(1)) if single else source
    low = op.MatMul(rows, _turned(_columns(downs, down)))
    added = op.MatMul(low, _columns(ups, up))
    return op.Add(output, op.Squeeze(added, _ints(1)) if single else added)


def _convolution(
    output: Value,
    source: Value,
    downs: Value,
    ups: Value,
    down: Sequence[int],
    up: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Value:
    channels, size = source.shape[1], op.Shape(source, start=2)
    first = op.Reshape(_columns(downs, down), _ints(0, -1, channels))
    low = op.MatMul(first, op.Reshape(source, _ints(0, channels, -1)))
    if (*kernel, *stride, *padding) != (1, 1, 1, 1, 0, 0):
        maps = op.Reshape(low, op.Concat(_ints(0, -1), size, axis=0))
        total = _shifted(maps, kernel, stride, padding)
        size = op.Shape(total, start=2)
        low = op.Reshape(total, op.Concat(_ints(0, -1), op.ReduceProd(size, keepdims=1), axis=0))
    added = op.MatMul(_turned(_columns(ups, up)), low)
    # nothing but the sum reads the layer's output: int8 convolutions have their bias inside then
    return op.Add(output, op.Reshape(added, op.Concat(_ints(0, up[1] - up[0]), size, axis=0)))


def _shifted(maps: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Value:
    """Return the sum of maps (B, rank * places, height, width), each shifted by its place."""
    (high, wide), (top, left) = kernel, padding
    if top or left:
        maps = op.Pad(maps, _ints(0, 0, top, left, 0, 0, top, left))
    shifted = []
    for place in range(high * wide):
        row, column = divmod(place, wide)
        # up to where the whole kernel fits
        ends = (_before_end(high - 1 - row), _before_end(wide - 1 - column))
        starts, steps = _ints(place, row, column), _ints(high * wide, *stride)
        shifted.append(op.Slice(maps, starts, _ints(WHOLE, *ends), _ints(1, 2, 3), steps))
    return op.Sum(*shifted) if len(shifted) > 1 else shifted[0]


def _before_end(count: int) -> int:
    return -count or WHOLE


TRANSLATIONS: Mapping[Any, Callable[..., Value]] = MappingProxyType(
    {
        torch.ops.controlnext.lora_linear.default: _linear,
        torch.ops.controlnext.lora_convolution.default: _convolution,
    }
)
"""Functions that translate the operators, for the exporter."""
