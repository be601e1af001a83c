"""Write graphs with their weights in a file beside them, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from controlnext.bundle.format import DATA, MODEL, PARTS, SHALLOW, UINT8_PARTS
from controlnext.errors import CheckpointError
from controlnext.export.passes import (
    cut_shallow,
    fuse_attention,
    fuse_groups,
    fuse_matmul_integer,
    split_prologue,
    use_uint8_activations,
    use_uint8_weights,
)
from controlnext.families import CachedFeature
from controlnext.types import Precision
from controlnext.weights import is_finite
from controlnext.weights.graphs import read_graph


def attach_weights(model: ir.Model, readers: Mapping[str, Callable[[], Tensor]]) -> ir.Model:
    """Return the model with initializers whose values ``readers`` read by name on demand."""
    values = model.graph.initializers
    for name in readers.keys() & values.keys():
        value = values[name]
        assert value.dtype is not None
        assert value.const_value is not None
        shape = value.const_value.shape
        read = partial(_read, name, readers[name], value.dtype, tuple(shape.numpy()))
        value.const_value = ir.LazyTensor(read, value.dtype, ir.Shape(shape.numpy()), name=name)
    return model


def write_graph(
    model: ir.Model, directory: Path, advance: Callable[[float], None] = lambda _fraction: None
) -> None:
    """Write ``model`` into ``directory``; ``advance`` gets the fraction written so far."""
    directory.mkdir(parents=True)
    try:
        ir.save(
            model,
            directory / MODEL,
            external_data=DATA,
            callback=lambda _tensor, info: advance((info.index + 1) / info.total),
            max_workers=1,
        )
    except ir.serde.SerdeError as error:
        # small tensors are read while the graph is serialized, which wraps errors: the cause is often a full
        # disk or a damaged checkpoint, and the user has to see it
        raise _first_cause(error) from error


def write_shallow(directory: Path, cached: Sequence[CachedFeature]) -> list[str]:
    """Write the shallow part of the graph in ``directory``, which refers to the same weights.

    Return the names of its inputs besides the features.
    """
    shallow = cut_shallow(read_graph(directory / MODEL), cached)
    ir.save(shallow, directory / SHALLOW)
    features = {one.spec.name for one in cached}
    return [value.name for value in shallow.graph.inputs if value.name and value.name not in features]


def write_parts(
    directory: Path,
    changing: Collection[str],
    prologue: bool,
    precision: Precision,
    cached: Sequence[CachedFeature] = (),
) -> None:
    """Write the graph in ``directory`` once more as ONNX Runtime runs it best, referring to the same weights.

    With ``prologue``, the part that does not depend on the inputs ``changing`` is a graph of its own; the
    step is the rest. With features ``cached``, the shallow part of the step is a graph too. If integers are
    multiplied there is a second form with unsigned weights: the processor decides which form is right.
    """
    step = fuse_attention(read_graph(directory / MODEL))
    if precision.integer_products:
        # in other precisions its rounding would be visible
        step = fuse_groups(step)
    once, step = split_prologue(step, changing) if prologue else (None, step)
    shallow = cut_shallow(step, cached) if cached else None
    for part, name, uint8_name in zip((once, step, shallow), PARTS, UINT8_PARTS, strict=True):
        if part is None:
            continue
        ir.save(use_uint8_activations(fuse_matmul_integer(part)), directory / name)
        if precision.integer_products:
            ir.save(use_uint8_weights(part), directory / uint8_name)


def _first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _first_cause(error.__cause__)


def _read(
    name: str, reader: Callable[[], Tensor], dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.Tensor[np.ndarray]:
    tensor = reader().to(getattr(torch, np.dtype(dtype.numpy()).name)).reshape(shape).contiguous()
    if not is_finite(tensor):
        raise CheckpointError(
            f"tensor {name} has values that {dtype.name.lower()} cannot hold; export with `precision` fp32,"
            " or check the checkpoint for damage"
        )
    return ir.Tensor(tensor.numpy(), name=name)
