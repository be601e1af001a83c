"""The engine of OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from controlnext.bundle.manifest import Manifest
from controlnext.engines.base import Engine
from controlnext.engines.openvino.compiled import Runnable
from controlnext.engines.openvino.library import reason
from controlnext.engines.steps import StepKind
from controlnext.errors import WorkError
from controlnext.tensor_spec import TensorSpec
from controlnext.types import Feed


class OpenVinoEngine(Engine):
    """A graph that OpenVINO runs on the CPU.

    ``step`` is the graph, or what is left of it without the ``prologue``, whose outputs it reads. Its outputs
    are those of the manifest, then the features. ``load_shallow`` returns the shallow part.
    """

    def __init__(
        self,
        manifest: Manifest,
        graph_name: str,
        backend: str,
        step: Runnable,
        prologue: Runnable | None,
        load_shallow: Callable[[], Runnable],
    ) -> None:
        super().__init__(manifest, graph_name, backend)
        self._step: Runnable | None = step
        self._prologue = prologue
        self._shallow: Runnable | None = None
        self._load_shallow = load_shallow
        self.step_inputs = frozenset(step.inputs)
        self.prologue_inputs = frozenset(prologue.inputs if prologue else ())
        self._check_reads(self.prologue_inputs)
        self._check_reads(self.step_inputs, prologue.outputs if prologue else ())

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        return self._outputs(self._opened(), feed, self.outputs)

    def _run_cached(self, feed: Feed, replaced: Collection[str], kind: StepKind) -> dict[str, np.ndarray]:  # noqa: ARG002
        self._open_shallow()
        if kind is StepKind.SHALLOW:
            assert self._shallow is not None
            return self._outputs(self._shallow, feed, self.outputs)
        return self._outputs(self._opened(), feed, (*self.outputs, *self.features))

    def _open_shallow(self) -> None:
        self._opened()
        if self._shallow is None:
            self._shallow = self._load_shallow()
            computed = self._prologue.outputs if self._prologue else ()
            self._check_reads(self._shallow.inputs, [*computed, *(spec.name for spec in self.features)])

    def _run_prologue(self, feed: Feed) -> dict[str, np.ndarray]:
        self._opened()
        if self._prologue is None:
            return {}
        with self._failures():
            return self._prologue.run(feed, self._prologue.outputs)

    def _outputs(self, graph: Runnable, feed: Feed, outputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
        with self._failures():
            return graph.run(feed, [spec.name for spec in outputs])

    def _opened(self) -> Runnable:
        if self._step is None:
            raise self._closed()
        return self._step

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise WorkError(f"OpenVINO failed in {self.graph_name}: {reason(error)}") from error

    def _close(self) -> None:
        self._step = self._shallow = self._prologue = None
