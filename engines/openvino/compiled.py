"""A graph compiled by OpenVINO for each size that it meets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from controlnext.tensor_spec import LORA_INPUTS
from controlnext.types import Feed

MOST_SIZES = 2
"""Sizes whose compiled models stay, each with weights of its own."""

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of a graph's inputs, or a part of each."""


class Runnable(Protocol):
    """A graph, ready to run. ``inputs``, ``outputs``: the names."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Feed, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs ``wanted`` for the inputs in ``feed``, which may hold other arrays too."""


class GraphInTurn:
    """Two graphs: ``first`` computes some of the inputs of ``second``, at every run."""

    def __init__(self, first: Runnable, second: Runnable) -> None:
        self._first, self._second = first, second
        own = (name for name in second.inputs if name not in first.outputs)
        self.inputs = tuple(dict.fromkeys((*first.inputs, *own)))
        self.outputs = second.outputs

    def run(self, feed: Feed, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs ``wanted`` of the second graph; see :meth:`Runnable.run`."""
        return self._second.run({**feed, **self._first.run(feed, self._first.outputs)}, wanted)


@dataclass(frozen=True)
class _Compiled:
    """A compiled model's ``request``. ``rows``: the first dimensions that it takes, None for any."""

    request: Any
    rows: Shapes | None


class CompiledGraph:
    """A graph that is compiled for a size when that first comes: all dimensions of its inputs but the first,
    and but the rank of LoRAs.

    The first ones, the numbers of rows, are fixed too until others come at that size; then one model for any
    numbers takes the place of the first. ``model`` is the graph as an ``openvino.Model``, released once it is
    compiled, ``read`` returns it again; ``build`` compiles it. ``fits`` tells of a model with fixed shapes
    whether the library compiles it right; one that it does not is compiled for any shapes. ``inputs``,
    ``outputs``: the names.
    """

    def __init__(
        self,
        model: Any,
        read: Callable[[], Any],
        build: Callable[[Any], Any],
        fits: Callable[[Any], bool] = lambda _model: True,
    ) -> None:
        self._read, self._build, self._fits = read, build, fits
        self._next = model
        self.inputs = tuple(value.get_any_name() for value in model.inputs)
        self.outputs = tuple(value.get_any_name() for value in model.outputs)
        self._compiled: OrderedDict[Shapes, _Compiled] = OrderedDict()

    def run(self, feed: Feed, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs ``wanted``; see :meth:`Runnable.run`."""
        arrays = {name: np.ascontiguousarray(feed[name]) for name in self.inputs}
        request = self._request(tuple(_fixed(name, array.shape) for name, array in arrays.items()))
        request.infer(arrays, share_inputs=True, share_outputs=True)
        # the request's own memory, which the next run overwrites
        return {name: request.get_tensor(name).data.copy() for name in wanted}

    def _request(self, shapes: Shapes) -> Any:
        size, rows = tuple(shape[1:] for shape in shapes), tuple(shape[:1] for shape in shapes)
        compiled = self._compiled.pop(size, None)
        if compiled is None or compiled.rows not in (None, rows):
            rows_differ = compiled is not None
            # releases its memory before the next one takes as much
            compiled = None
            while len(self._compiled) >= MOST_SIZES:
                self._compiled.popitem(last=False)
            compiled = self._compile(shapes, rows_differ)
        self._compiled[size] = compiled
        return compiled.request

    def _compile(self, shapes: Shapes, rows_differ: bool) -> _Compiled:
        """Compile the graph for ``shapes``, or if ``rows_differ`` for any rows of that size."""
        model, self._next = self._next or self._read(), None
        any_shapes = {name: model.input(name).get_partial_shape() for name in self.inputs}
        fixed = dict(zip(self.inputs, map(list, shapes), strict=True))
        model.reshape(fixed)
        # whether it fits depends on the size alone
        takes_all = not self._fits(model)
        if takes_all:
            model.reshape(any_shapes)
        elif rows_differ:
            model.reshape({name: [*list(any_shapes[name])[:1], *shape[1:]] for name, shape in fixed.items()})
        rows = None if takes_all or rows_differ else tuple(shape[:1] for shape in shapes)
        return _Compiled(self._build(model).create_infer_request(), rows)


def _fixed(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a graph is compiled for; the rank of LoRAs stays open."""
    if name not in LORA_INPUTS:
        return shape
    rows, _, columns = shape
    return rows, -1, columns
