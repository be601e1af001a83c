"""Engines that run ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from controlnext.bundle.manifest import Manifest
from controlnext.engines.base import Engine
from controlnext.engines.steps import StepKind
from controlnext.errors import WorkError, first_line
from controlnext.tensor_spec import TensorSpec
from controlnext.types import Feed


class OrtEngine(Engine):
    """A graph that ONNX Runtime runs on the CPU.

    ``sessions``: that of the graph, or those of its prologue and its step. The step reads the prologue's
    outputs. ``load_shallow`` returns the session of the shallow step, with weights of its own: those of a few
    layers.
    """

    def __init__(
        self,
        sessions: Sequence[Any],
        manifest: Manifest,
        graph_name: str,
        backend: str,
        load_shallow: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(manifest, graph_name, backend)
        self._load_shallow = load_shallow
        *prologue, self._step = sessions
        self._shallow: Any = None
        self._prologue = prologue[0] if prologue else None
        self.step_inputs = frozenset(_input_names(self._step))
        self.prologue_inputs = frozenset(_input_names(self._prologue) if prologue else ())
        self._shallow_reads: frozenset[str] = frozenset()
        self._computed = _output_names(self._prologue) if prologue else []
        self._check_reads(self.prologue_inputs)
        self._check_reads(self.step_inputs, self._computed)

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        return self._named(self.outputs, self._step, self.step_inputs, feed, replaced)

    def _run_cached(self, feed: Feed, replaced: Collection[str], kind: StepKind) -> dict[str, np.ndarray]:
        self._open_shallow()
        if kind is StepKind.SHALLOW:
            return self._named(self.outputs, self._shallow, self._shallow_reads, feed, replaced)
        outputs = (*self.outputs, *self.features)
        return self._named(outputs, self._step, self.step_inputs, feed, replaced)

    def _open_shallow(self) -> None:
        self._check_open()
        if self._shallow is None:
            assert self._load_shallow is not None
            self._shallow = self._load_shallow()
            self._shallow_reads = frozenset(_input_names(self._shallow))
            self._check_reads(self._shallow_reads, [*self._computed, *(spec.name for spec in self.features)])

    def _named(
        self,
        outputs: Sequence[TensorSpec],
        session: Any,
        reads: frozenset[str],
        feed: Feed,
        replaced: Collection[str],
    ) -> dict[str, np.ndarray]:
        self._check_open()
        names = [spec.name for spec in outputs]
        with self._failures():
            return dict(zip(names, self._outputs(names, session, reads, feed, replaced), strict=True))

    def _outputs(
        self,
        names: Sequence[str],
        session: Any,
        reads: frozenset[str],
        feed: Feed,
        replaced: Collection[str],  # noqa: ARG002
    ) -> list[np.ndarray]:
        """Return the outputs ``names`` of a session, which ``reads`` these inputs."""
        outputs: list[np.ndarray] = session.run(names, _chosen(feed, reads))
        return outputs

    def _run_prologue(self, feed: Feed) -> dict[str, np.ndarray]:
        self._check_open()
        if self._prologue is None:
            return {}
        with self._failures():
            given = self._prologue.run(self._computed, _chosen(feed, self.prologue_inputs))
        return dict(zip(self._computed, given, strict=True))

    def _check_open(self) -> None:
        if self._step is None:
            raise self._closed()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime failed in {self.graph_name}: {first_line(error)}") from error

    def _close(self) -> None:
        self._step = self._shallow = self._prologue = None


class DeviceEngine(OrtEngine):
    """Sessions on a device with its own memory, where inputs stay until they are replaced.

    ``place`` copies an array to that memory, given the array, the device's type and its number. What the
    prologue computes, and features for shallow steps, go through the processor's memory, where they can be
    joined with those of other runs.
    """

    least_rank = 1  # a GPU's kernels were not seen to take tensors without elements

    def __init__(
        self,
        sessions: Sequence[Any],
        manifest: Manifest,
        graph_name: str,
        backend: str,
        place: Callable[[np.ndarray, str, int], Any],
        device: tuple[str, int],
        load_shallow: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(sessions, manifest, graph_name, backend, load_shallow)
        self._place, self._device = place, device
        self._bindings: dict[Any, Any] = {}

    def _outputs(
        self, names: Sequence[str], session: Any, reads: frozenset[str], feed: Feed, replaced: Collection[str]
    ) -> list[np.ndarray]:
        if session not in self._bindings:
            self._bindings[session] = session.io_binding()
        binding = self._bindings[session]
        for name in reads.intersection(replaced):
            placed = self._place(np.ascontiguousarray(feed[name]), *self._device)
            binding.bind_ortvalue_input(name, placed)
        for name in names:
            # bind again: the buffer of the last run has the shape of that run
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        outputs: list[np.ndarray] = binding.copy_outputs_to_cpu()
        binding.clear_binding_outputs()
        return outputs

    def _close(self) -> None:
        self._bindings = {}
        super()._close()


def _input_names(session: Any) -> list[str]:
    return [value.name for value in session.get_inputs()]


def _output_names(session: Any) -> list[str]:
    return [value.name for value in session.get_outputs()]


def _chosen(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}
