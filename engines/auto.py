"""The fastest that works, graph by graph: a built engine, else what runs the graph itself."""

from __future__ import annotations

import logging
from pathlib import Path

from controlnext.bundle.manifest import Manifest
from controlnext.engines import registry
from controlnext.engines.base import Backend, Engine, device_kind
from controlnext.errors import ControlNeXtError, InputError, MissingDependencyError

logger = logging.getLogger(__name__)


class AutoBackend(Backend):
    """Built engines that suit this bundle, machine and library, by the first backend of the table that has
    one; other graphs by the first that is installed and runs them as they are, with ``threads``.

    Raises as that backend does, :class:`~controlnext.errors.MissingDependencyError` where none is installed.
    Without any, a GPU and a library that runs built engines are enough to begin with.
    """

    name = "auto"

    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        device_kind(device)
        self._device, self._threads = device, threads
        there = [backend for backend in registry.BACKENDS.values() if backend.supports(device)]
        self._built = [backend for backend in there if backend.needs_build]
        self._general: Backend | MissingDependencyError
        try:
            self._general = self._first_general(there)
        except MissingDependencyError as error:
            if not any(backend.available() for backend in self._built):
                raise
            self._general = error

    def _first_general(self, there: list[type[Backend]]) -> Backend:
        """Of those that need no built engine the first that is installed."""
        general = [backend for backend in there if not backend.needs_build]
        if not general:
            raise InputError(f"no backend runs on device {self._device}; give device auto", argument="device")
        chosen = next((backend for backend in general if backend.available()), general[0])
        return chosen(self._device, threads=self._threads)

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        engine = self._open_built(bundle, manifest, graph_name, cache)
        if engine is None:
            if isinstance(self._general, MissingDependencyError):
                raise self._general
            engine = self._general.open(bundle, manifest, graph_name, cache=cache)
        logger.info("%s runs by %s", graph_name, engine.backend)
        return engine

    def _open_built(self, bundle: Path, manifest: Manifest, graph_name: str, cache: bool) -> Engine | None:
        """The first built engine that works; of those that do not a warning says why."""
        for backend in self._built:
            if not backend.has_engine(bundle, graph_name):
                continue
            try:
                chosen = backend(self._device, threads=self._threads)
                return chosen.open(bundle, manifest, graph_name, cache=cache)
            except ControlNeXtError as error:
                logger.warning("going on without the %s engine of %s: %s", backend.name, graph_name, error)
        return None
