"""The backend ``auto``: for each graph a built engine, else a backend that runs the graph itself."""

from __future__ import annotations

import logging
from pathlib import Path

from controlnext.bundle.manifest import Manifest
from controlnext.engines import registry
from controlnext.engines.base import Backend, Engine
from controlnext.engines.devices import device_kind
from controlnext.errors import ControlNeXtError, InputError, MissingDependencyError

logger = logging.getLogger(__name__)


class AutoBackend(Backend):
    """The fastest backend that works, chosen for each graph.

    A built engine that suits this bundle, machine and library is run by the first backend of the registry
    that has one. Other graphs are run, with ``threads``, by the first installed backend that needs no built
    engine. Raises the errors of that backend, and :class:`~controlnext.errors.MissingDependencyError` if
    none is installed; with a GPU and a library that runs built engines, only once a graph needs it.
    """

    name = "auto"

    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        device_kind(device)
        self._device, self._threads = device, threads
        backends = [backend for backend in registry.BACKENDS.values() if backend.automatic]
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

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open the graph ``graph_name`` with the fastest backend that works."""
        engine = self._open_built(bundle, manifest, graph_name, cache)
        if engine is None:
            if isinstance(self._general, MissingDependencyError):
                raise self._general
            engine = self._general.open(bundle, manifest, graph_name, cache=cache)
        logger.info("%s runs by %s", graph_name, engine.backend)
        return engine

    def _open_built(self, bundle: Path, manifest: Manifest, graph_name: str, cache: bool) -> Engine | None:
        """Return the first built engine that works; log why others do not."""
        for backend in self._built:
            if not backend.has_engine(bundle, graph_name):
                continue
            try:
                chosen = backend(self._device, threads=self._threads)
                return chosen.open(bundle, manifest, graph_name, cache=cache)
            except ControlNeXtError as error:
                logger.warning("continuing without the %s engine of %s: %s", backend.name, graph_name, error)
        return None
