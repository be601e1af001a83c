"""One engine in memory at a time: the least memory, for loading again what comes next."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from controlnext.bundle.manifest import Manifest
from controlnext.engines.base import Backend, Engine
from controlnext.errors import InputError
from controlnext.types import Feed


class OffloadBackend(Backend):
    """``backend`` with one of its engines in memory at a time: that which ran last.

    An engine that has to run is loaded again if another ran since. Over all of them one runs at a time.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._place = _Place()

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        load = partial(self._backend.open, bundle, manifest, graph_name, cache=cache)
        return _OffloadedEngine(self._place, manifest, graph_name, load)


class _Place:
    """Where one engine has room."""

    def __init__(self) -> None:
        self.turn = Lock()
        self.holder: _OffloadedEngine | None = None


class _OffloadedEngine(Engine):
    def __init__(
        self, place: _Place, manifest: Manifest, graph_name: str, load: Callable[[], Engine]
    ) -> None:
        super().__init__(manifest, graph_name)
        self._place = place
        self._load: Callable[[], Engine] | None = load
        self._loaded: Engine | None = None
        with place.turn:
            self.backend = self._enter().backend

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        with self._place.turn:
            new = self._loaded is None
            return self._enter()._run(feed, feed.keys() if new else replaced)

    def _enter(self) -> Engine:
        """The engine, in memory; whichever was there gives way."""
        if self._load is None:
            raise InputError(f"the engine of {self.graph_name} is closed; open it again")
        if self._loaded is None:
            if self._place.holder is not None:
                self._place.holder._leave()
            self._loaded = self._load()
            self._place.holder = self
        return self._loaded

    def _leave(self) -> None:
        loaded, self._loaded, self._place.holder = self._loaded, None, None
        if loaded is not None:
            loaded.close()

    def _close(self) -> None:
        with self._place.turn:
            self._load = None
            if self._loaded is not None:
                self._leave()
