"""Engines that run ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from controlnext.bundle.manifest import Manifest
from controlnext.engines.base import Engine
from controlnext.errors import InputError, WorkError
from controlnext.types import Feed


class OrtEngine(Engine):
    """A graph that ONNX Runtime runs on the CPU.

    ``sessions``: that of the graph, or those of its prologue and its step. The prologue runs if one of its
    inputs was replaced; the step reads its outputs.
    """

    def __init__(self, sessions: Sequence[Any], manifest: Manifest, graph_name: str, backend: str) -> None:
        super().__init__(manifest, graph_name, backend)
        self._names = [spec.name for spec in self.outputs]
        self._sessions = tuple(sessions)
        self._inputs = [[value.name for value in session.get_inputs()] for session in sessions]
        self._once: dict[str, np.ndarray] = {}

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        if not self._sessions:
            raise InputError(f"the engine of {self.graph_name} is closed; open it again")
        try:
            outputs = self._outputs(feed, replaced)
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime failed in {self.graph_name}: {first_line(error)}") from error
        return dict(zip(self._names, outputs, strict=True))

    def _outputs(self, feed: Feed, replaced: Collection[str]) -> list[np.ndarray]:
        *prologue, step = zip(self._sessions, self._inputs, strict=True)
        for session, names in prologue:
            if not set(names).isdisjoint(replaced):
                given = session.run(None, _chosen(feed, names))
                self._once = dict(zip((v.name for v in session.get_outputs()), given, strict=True))
        session, names = step
        return session.run(self._names, _chosen({**feed, **self._once}, names))

    def _close(self) -> None:
        self._sessions = ()
        self._once = {}


class DeviceEngine(OrtEngine):
    """Sessions on a device with its own memory, where inputs stay until they are replaced.

    ``place`` copies an array to that memory, given the array, the device's type and its number.
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
        self._bindings = tuple(session.io_binding() for session in sessions)

    def _outputs(self, feed: Feed, replaced: Collection[str]) -> list[np.ndarray]:
        new = {name: self._place(np.ascontiguousarray(feed[name]), *self._device) for name in replaced}
        *prologue, step = zip(self._sessions, self._bindings, self._inputs, strict=True)
        for session, binding, names in prologue:
            if _bind(binding, new, names):
                outputs = [value.name for value in session.get_outputs()]
                for name in outputs:
                    binding.bind_output(name, *self._device)
                session.run_with_iobinding(binding)
                new |= dict(zip(outputs, binding.get_outputs(), strict=True))
                binding.clear_binding_outputs()
        session, binding, names = step
        _bind(binding, new, names)
        for name in self._names:
            # bind again: the buffer of the last run has the shape of that run
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        outputs = binding.copy_outputs_to_cpu()
        binding.clear_binding_outputs()
        return outputs

    def _close(self) -> None:
        self._bindings = ()
        super()._close()


def _bind(binding: Any, values: Mapping[str, Any], names: Collection[str]) -> bool:
    """Bind the ``values`` that a session has as inputs ``names``; return whether there were any."""
    chosen = _chosen(values, names)
    for name, value in chosen.items():
        binding.bind_ortvalue_input(name, value)
    return bool(chosen)


def _chosen(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]
