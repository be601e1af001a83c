"""A graph compiled by OpenVINO for each set of shapes that it meets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from controlnext.tensor_spec import LORA_INPUTS
from controlnext.types import Feed

MOST_SHAPES = 2
"""Sets of shapes whose compiled models stay, each with weights of its own: guided steps, and those after the
end of guidance."""

Shapes = tuple[tuple[int, ...], ...]


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


class CompiledGraph:
    """A graph that is compiled for the shapes of its inputs when these first come, for any rank of LoRAs.

    ``read`` returns it as an ``openvino.Model``, released once it is compiled; ``build`` compiles it.
    ``fits`` tells of a model with fixed shapes whether the library compiles it right; one that it does not is
    compiled for any shapes. ``inputs``, ``outputs``: the names.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        build: Callable[[Any], Any],
        fits: Callable[[Any], bool] = lambda _model: True,
    ) -> None:
        self._read, self._build, self._fits = read, build, fits
        model = self._next = read()
        self.inputs = tuple(value.get_any_name() for value in model.inputs)
        self.outputs = tuple(value.get_any_name() for value in model.outputs)
        self._requests: OrderedDict[Shapes, Any] = OrderedDict()

    def run(self, feed: Feed, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs ``wanted``; see :meth:`Runnable.run`."""
        arrays = {name: np.ascontiguousarray(feed[name]) for name in self.inputs}
        request = self._request(tuple(_fixed(name, array.shape) for name, array in arrays.items()))
        request.infer(arrays, share_inputs=True, share_outputs=True)
        # the request's own memory, which the next run overwrites
        return {name: request.get_tensor(name).data.copy() for name in wanted}

    def _request(self, shapes: Shapes) -> Any:
        request = self._requests.pop(shapes, None)
        if request is None:
            while len(self._requests) >= MOST_SHAPES:
                self._requests.popitem(last=False)
            model, self._next = self._next or self._read(), None
            any_shapes = {name: model.input(name).get_partial_shape() for name in self.inputs}
            model.reshape(dict(zip(self.inputs, map(list, shapes), strict=True)))
            if not self._fits(model):
                model.reshape(any_shapes)
            request = self._build(model).create_infer_request()
        self._requests[shapes] = request
        return request


def _fixed(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a graph is compiled for; the rank of LoRAs stays open."""
    rows, *_, last = shape
    return (rows, -1, last) if name in LORA_INPUTS else shape
