"""Execution contexts of an engine: one for each set of input shapes, with the CUDA graph of its work."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from controlnext.engines.tensorrt.cuda import Cuda
from controlnext.engines.tensorrt.load import Loaded
from controlnext.errors import WorkError
from controlnext.tensor_spec import TensorSpec

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]

MOST_CONTEXTS = 8
"""The most contexts of an engine: the numbers of rows of a few image sizes that take turns."""


@dataclass
class Context:
    """An execution context at some input shapes.

    ``native``: the library's. ``results``: the shapes of the outputs. ``moves``: that of the buffers whose
    addresses it has. ``ran``: whether it ran at these shapes and addresses; ``recorded``: the CUDA graph of
    that.
    """

    native: Any
    results: Shapes = field(default_factory=dict)
    moves: int = -1
    ran: bool = False
    recorded: Any = None


class Buffers:
    """A buffer for each tensor, shared by all contexts because one runs at a time.

    A buffer grows if its tensor does not fit. ``addresses``: by name; ``moves`` counts their changes.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._sizes: dict[str, int] = {}
        self.addresses: dict[str, int] = {}
        self.moves = 0

    def fit(self, sizes: Mapping[str, int]) -> None:
        """Make room for tensors of these ``sizes`` in bytes."""
        for name, size in sizes.items():
            if size > self._sizes.get(name, 0):
                self._replace(name, size)

    def _replace(self, name: str, size: int) -> None:
        # counted first: if the allocation fails, nobody may use the old address either
        self.moves += 1
        if name in self.addresses:
            del self._sizes[name]
            self._cuda.free(self.addresses.pop(name))
        self.addresses[name] = self._cuda.allocate(size)
        self._sizes[name] = size

    def free(self) -> None:
        """Release all buffers."""
        for address in self.addresses.values():
            self._cuda.free(address)
        self.addresses, self._sizes = {}, {}


class Contexts:
    """The contexts of a loaded engine by input shapes, and the ``buffers`` of its tensors.

    If CUDA graphs are recorded here, there is a context for each of the :data:`MOST_CONTEXTS` sets of shapes
    that were used last: a graph needs one of its own. They share the memory for activations. Otherwise there
    is one context, whose shapes change.
    """

    def __init__(
        self, loaded: Loaded, cuda: Cuda, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._loaded, self._cuda = loaded, cuda
        self._inputs, self._outputs = inputs, outputs
        self._records = loaded.records
        self._most = MOST_CONTEXTS if loaded.records else 1
        self._kept: OrderedDict[tuple[tuple[int, ...], ...], Context] = OrderedDict()
        # the first one shows at once whether the engine starts
        first = loaded.make_context()
        self._activations = cuda.allocate(loaded.activation_size) if loaded.records else None
        self._unused = [self._with_memory(first)]
        self.buffers = Buffers(cuda)

    def __contains__(self, shapes: Shapes) -> bool:
        return self._key(shapes) in self._kept

    def at(self, shapes: Shapes) -> Context:
        """Return the context at these input shapes, with room for all tensors.

        Raises :class:`~controlnext.errors.WorkError` if there is none.
        """
        key = self._key(shapes)
        context = self._kept.pop(key, None) or self._reshaped(shapes)
        self._kept[key] = context
        if context.moves != self.buffers.moves:
            self._place(context, shapes)
        return context

    def run(self, context: Context) -> None:
        """Enqueue the work of a context: kernel by kernel at first, then, if that is possible, as a graph."""
        if context.ran and self._records and context.recorded is None:
            try:
                context.recorded = self._cuda.record(partial(self._enqueue, context))
            except WorkError as error:
                logger.info("continuing without a CUDA graph: %s", error)
                self._records = False
        if context.recorded is None:
            self._enqueue(context)
        else:
            self._cuda.replay(context.recorded)
        context.ran = True

    def close(self) -> None:
        """Release graphs, contexts and memory."""
        for context in self._kept.values():
            self._forget(context)
        self._kept.clear()
        self._unused.clear()
        self.buffers.free()
        if self._activations is not None:
            self._cuda.free(self._activations)

    def _key(self, shapes: Shapes) -> tuple[tuple[int, ...], ...]:
        return tuple(shapes[spec.name] for spec in self._inputs)

    def _with_memory(self, native: Any) -> Any:
        if self._activations is not None:
            native.set_device_memory(self._activations, self._loaded.activation_size)
        return native

    def _reshaped(self, shapes: Shapes) -> Context:
        """Return a context set to these shapes: a new one if there is room, else the least recently used."""
        native = self._free_context()
        for spec in self._inputs:
            if not native.set_input_shape(spec.name, shapes[spec.name]):
                raise self._loaded.error(f"set {spec.name} to shape {shapes[spec.name]} in")
        results = {spec.name: tuple(native.get_tensor_shape(spec.name)) for spec in self._outputs}
        return Context(native, results)

    def _free_context(self) -> Any:
        if self._unused:
            return self._unused.pop()
        if len(self._kept) < self._most:
            try:
                return self._with_memory(self._loaded.make_context())
            except WorkError as error:
                if not self._kept:
                    raise
                logger.info("continuing with %d execution contexts: %s", len(self._kept), error)
                self._most = len(self._kept)
        _, oldest = self._kept.popitem(last=False)
        self._forget(oldest)
        return oldest.native

    def _place(self, context: Context, shapes: Shapes) -> None:
        """Make room for all tensors of a context and tell it their addresses."""
        specs, shapes = (*self._inputs, *self._outputs), {**shapes, **context.results}
        self.buffers.fit(
            {spec.name: int(np.prod(shapes[spec.name])) * np.dtype(spec.dtype).itemsize for spec in specs}
        )
        self._forget(context)
        for spec in specs:
            context.native.set_tensor_address(spec.name, self.buffers.addresses[spec.name])
        context.moves = self.buffers.moves

    def _enqueue(self, context: Context) -> None:
        if not context.native.execute_async_v3(self._cuda.stream):
            raise self._loaded.error("run")

    def _forget(self, context: Context) -> None:
        """Discard the recorded graph, because shapes or addresses change."""
        if context.recorded is not None:
            self._cuda.forget(context.recorded)
        context.ran, context.recorded = False, None
