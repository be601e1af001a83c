"""The backend ``auto``: for each graph a built engine, else the fastest backend that runs it itself."""

from __future__ import annotations

import logging
from pathlib import Path

from controlnext.bundle.manifest import Manifest
from controlnext.engines import measured, registry
from controlnext.engines.base import Backend, Engine
from controlnext.engines.devices import device_kind
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.errors import ControlNeXtError, InputError, MissingDependencyError
from controlnext.types import Precision

logger = logging.getLogger(__name__)


class AutoBackend(Backend):
    """The fastest backend that works, chosen for each graph.

    A built engine that suits this bundle, machine and library is run by the first backend of the registry
    that has one. Other graphs are run, with ``threads``, by the first installed backend that needs no built
    engine; where that is ONNX Runtime on the CPU, by the one that :mod:`controlnext.engines.measured` has for
    the graph. Raises the errors of that backend, and :class:`~controlnext.errors.MissingDependencyError` if
    none is installed; with a GPU and a library that runs built engines, only once a graph needs it.
    """

    name = "auto"

    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        device_kind(device)
        self._device, self._threads = device, threads
        backends = [backend for backend in registry.BACKENDS.values() if not backend.rounds_to]
        supported = [backend for backend in backends if backend.supports(device)]
        self._built = [backend for backend in supported if backend.needs_build]
        self._general: Backend | MissingDependencyError
        try:
            self._general = self._first_general(supported)
        except MissingDependencyError as error:
            if not any(backend.available() for backend in self._built):
                raise
            self._general = error

    def _first_general(self, supported: list[type[Backend]]) -> Backend:
        """Return the first installed backend that needs no built engine."""
        general = [backend for backend in supported if not backend.needs_build]
        if not general:
            raise InputError(
                f"no backend runs on device {self._device}; set `device` to auto", argument="device"
            )
        chosen = next((backend for backend in general if backend.available()), general[0])
        return chosen(self._device, threads=self._threads)

    def faster(self, precision: Precision) -> type[Backend] | None:
        """Return the backend that runs graphs of ``precision`` in place of ONNX Runtime; None for none."""
        general = self._general
        on_cpu = isinstance(general, OrtBackend) and general.device == "cpu"
        return measured.faster_backend(precision) if on_cpu else None

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open the graph ``graph_name`` with the fastest backend that works."""
        engine = self._open_built(bundle, manifest, graph_name, cache)
        if engine is None:
            engine = self._open_faster(bundle, manifest, graph_name, cache)
        if engine is None:
            if isinstance(self._general, MissingDependencyError):
                raise self._general
            engine = self._general.open(bundle, manifest, graph_name, cache=cache)
        logger.info("%s runs by %s", graph_name, engine.backend)
        return engine

    def _open_built(self, bundle: Path, manifest: Manifest, graph_name: str, cache: bool) -> Engine | None:
        """Return the first built engine that works; None if there is none."""
        for backend in self._built:
            if backend.has_engine(bundle, graph_name):
                engine = self._try(backend, bundle, manifest, graph_name, cache)
                if engine is not None:
                    return engine
        return None

    def _open_faster(self, bundle: Path, manifest: Manifest, graph_name: str, cache: bool) -> Engine | None:
        """Return the engine of the backend that is faster than ONNX Runtime for this graph, if it works."""
        graph = manifest.graphs.get(graph_name)
        backend = self.faster(graph.precision) if graph else None
        return self._try(backend, bundle, manifest, graph_name, cache) if backend else None

    def _try(
        self, backend: type[Backend], bundle: Path, manifest: Manifest, graph_name: str, cache: bool
    ) -> Engine | None:
        """Return the engine of ``backend``; log why it does not work."""
        try:
            chosen = backend(self._device, threads=self._threads)
            return chosen.open(bundle, manifest, graph_name, cache=cache)
        except ControlNeXtError as error:
            logger.warning("continuing without the %s engine of %s: %s", backend.name, graph_name, error)
        return None
