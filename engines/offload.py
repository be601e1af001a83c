"""Offloading: one engine in memory at a time, which saves memory and costs loading time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from controlnext.bundle.manifest import Manifest
from controlnext.engines.base import Backend, Engine
from controlnext.engines.steps import StepKind
from controlnext.types import Feed


class OffloadBackend(Backend):
    """A backend with one of its engines in memory at a time: the one that ran last.

    An engine is loaded again if another ran since its last run. Only one of all engines runs at a time.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._slot = _Slot()

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open the graph ``graph_name``; its engine is loaded now and whenever another has replaced it."""
        load = partial(self._backend.open, bundle, manifest, graph_name, cache=cache)
        return _OffloadedEngine(self._slot, manifest, graph_name, load)


class _Slot:
    """The slot for the one engine in memory."""

    def __init__(self) -> None:
        self.turn = Lock()
        self.holder: _OffloadedEngine | None = None


class _OffloadedEngine(Engine):
    def __init__(self, slot: _Slot, manifest: Manifest, graph_name: str, load: Callable[[], Engine]) -> None:
        super().__init__(manifest, graph_name)
        self._slot = slot
        self._load: Callable[[], Engine] | None = load
        self._loaded: Engine | None = None
        with slot.turn:
            self._stand_for(self._enter())

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        with self._slot.turn:
            new = self._loaded is None
            return self._enter()._run(feed, feed.keys() if new else replaced)

    def _run_cached(self, feed: Feed, replaced: Collection[str], kind: StepKind) -> dict[str, np.ndarray]:
        with self._slot.turn:
            new = self._loaded is None
            return self._enter()._run_cached(feed, feed.keys() if new else replaced, kind)

    def _open_shallow(self) -> None:
        with self._slot.turn:
            self._enter()._open_shallow()

    def _run_prologue(self, feed: Feed) -> dict[str, np.ndarray]:
        with self._slot.turn:
            return self._enter()._run_prologue(feed)

    def _enter(self) -> Engine:
        """Return the engine, loaded; the engine in memory before is closed."""
        if self._load is None:
            raise self._closed()
        if self._loaded is None:
            if self._slot.holder is not None:
                self._slot.holder._leave()
            self._loaded = self._load()
            self._slot.holder = self
        return self._loaded

    def _leave(self) -> None:
        loaded, self._loaded, self._slot.holder = self._loaded, None, None
        if loaded is not None:
            loaded.close()

    def _close(self) -> None:
        with self._slot.turn:
            self._load = None
            if self._loaded is not None:
                self._leave()
