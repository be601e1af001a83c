"""Trace a PyTorch module into an ONNX graph whose named dimensions stay dynamic."""

from __future__ import annotations

import gc
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import onnx_ir as ir
import torch
import torch._dynamo
from torch import nn

from controlnext.export.decompose import decomposed_in_place
from controlnext.export.lora_branches import TRANSLATIONS
from controlnext.export.shortcuts import COUNTED, name_stand_ins, short_trace
from controlnext.families import GraphSpec
from controlnext.tensor_spec import TensorSpec

_PROGRAM = 0.7
"""The share of a trace's time that PyTorch's program takes, the denoiser's about."""
OPSET = 23
"""The opset in which attention and group normalization are single operators."""


def materialize_meta_parameters(module: nn.Module) -> nn.Module:
    """Replace parameters on the meta device by CPU tensors of one repeated zero: a shape without memory."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros(()).expand(parameter.shape)
                part._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    return module


def trace(
    module: nn.Module,
    spec: GraphSpec,
    sizes: Mapping[str, int],
    report: Callable[[float], None] = lambda _done: None,
) -> ir.Model:
    """Return the graph of ``module`` as the exporter makes it, in float32.

    ``sizes`` are the model's own (:meth:`TensorSpec.resolve`). Every symbol of the specs is traced as a
    dynamic size, from the example values ``spec.trace_sizes``; these only lead the trace. ``report`` is
    called with what is done, from 0 to 1.
    """
    inputs = [tensor.resolve(sizes) for tensor in spec.inputs]
    examples = tuple(
        torch.zeros(tensor.shape_at(spec.trace_sizes), dtype=getattr(torch, tensor.dtype))
        for tensor in inputs
    )
    dynamic = tuple(_dynamic_axes(tensor) for tensor in inputs)
    shapes = _by_parameter(module, dynamic)
    with _quiet(), torch.no_grad():
        with short_trace(_counted(module, report)):
            program = torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
        name_stand_ins(program)
        with decomposed_in_place(program):
            exported = torch.onnx.export(
                program,
                dynamo=True,
                custom_translation_table=dict(TRANSLATIONS),
                opset_version=OPSET,
                # takes minutes on a large graph; controlnext.export.passes does the needed part
                optimize=False,
                verbose=False,
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in spec.outputs],
            )
    assert exported is not None
    return exported.model


def _counted(module: nn.Module, report: Callable[[float], None]) -> Callable[[], None]:
    """Return the function that counts the layers which a trace passed, and reports their share of all."""
    layers = sum(isinstance(part, COUNTED) for part in module.modules())
    passed = itertools.count(1)
    # the rest is the way from the program to the graph
    return lambda: report(_PROGRAM * min(next(passed) / max(layers, 1), 1))


def _by_parameter(module: nn.Module, dynamic: tuple[object, ...]) -> tuple[object, ...]:
    """Return what belongs to each parameter of a module's forward; ``*tensors`` is one for all that
    follow."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return dynamic
    named = len(parameters) - 1
    return (*dynamic[:named], dynamic[named:]) if dynamic[named:] else dynamic


def _dynamic_axes(tensor: TensorSpec) -> dict[int, object]:
    return {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off what the export does not need.

    These are deprecation warnings; the garbage collector, which takes a fifth of the time on the growing
    graph; and the tracer's cache of shapes: with symbolic sizes it takes longer than computing them.
    """
    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.enable()
