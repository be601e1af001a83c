"""Engines that run ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from controlnext.bundle.manifest import Manifest
from controlnext.engines.base import Engine
from controlnext.errors import InputError, WorkError
from controlnext.types import Feed


class OrtEngine(Engine):
    """A graph that ONNX Runtime runs on the CPU.

    ``sessions``: that of the graph, or those of its prologue and its step. The step reads the prologue's
    outputs.
    """

    def __init__(self, sessions: Sequence[Any], manifest: Manifest, graph_name: str, backend: str) -> None:
        super().__init__(manifest, graph_name, backend)
        self._names = [spec.name for spec in self.outputs]
        *prologue, self._step = sessions
        self._prologue = prologue[0] if prologue else None
        self.step_inputs = frozenset(_input_names(self._step))
        self.prologue_inputs = frozenset(_input_names(self._prologue) if prologue else ())

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        self._check_open()
        with self._failures():
            return dict(zip(self._names, self._outputs(feed, replaced), strict=True))

    def _outputs(self, feed: Feed, replaced: Collection[str]) -> list[np.ndarray]:  # noqa: ARG002
        return self._step.run(self._names, _chosen(feed, self.step_inputs))

    def _run_prologue(self, feed: Feed) -> dict[str, np.ndarray]:
        self._check_open()
        if self._prologue is None:
            return {}
        names = [value.name for value in self._prologue.get_outputs()]
        with self._failures():
            given = self._prologue.run(names, _chosen(feed, self.prologue_inputs))
        return dict(zip(names, given, strict=True))

    def _check_open(self) -> None:
        if self._step is None:
            raise InputError(f"the engine of {self.graph_name} is closed; open it again")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime failed in {self.graph_name}: {first_line(error)}") from error

    def _close(self) -> None:
        self._step = self._prologue = None


class DeviceEngine(OrtEngine):
    """Sessions on a device with its own memory, where inputs stay until they are replaced.

    ``place`` copies an array to that memory, given the array, the device's type and its number. What the
    prologue computes goes through the processor's memory, where it can be joined with that of other runs.
    """

    def __init__(
        self,
        sessions: Sequence[Any],
        manifest: Manifest,
        graph_name: str,
        backend: str,
        place: Callable[[np.ndarray, str, int], Any],
        device: tuple[str, int],
    ) -> None:
        super().__init__(sessions, manifest, graph_name, backend)
        self._place, self._device = place, device
        self._binding = self._step.io_binding()

    def _outputs(self, feed: Feed, replaced: Collection[str]) -> list[np.ndarray]:
        for name in self.step_inputs.intersection(replaced):
            placed = self._place(np.ascontiguousarray(feed[name]), *self._device)
            self._binding.bind_ortvalue_input(name, placed)
        for name in self._names:
            # bind again: the buffer of the last run has the shape of that run
            self._binding.bind_output(name)
        self._step.run_with_iobinding(self._binding)
        outputs = self._binding.copy_outputs_to_cpu()
        self._binding.clear_binding_outputs()
        return outputs

    def _close(self) -> None:
        self._binding = None
        super()._close()


def _input_names(session: Any) -> list[str]:
    return [value.name for value in session.get_inputs()]


def _chosen(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]
