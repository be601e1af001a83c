"""What every engine and every backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from controlnext.closing import Closing
from controlnext.manifest import Manifest
from controlnext.specs import bind


class Engine(Closing):
    """One graph of a bundle, ready to run. A context manager: leaving it closes it.

    ``inputs`` and ``outputs`` are the tensor specs of the bundle's manifest, at the edges float32 or int64
    whatever the precision inside.
    """

    def __init__(self, manifest: Manifest, folder: str) -> None:
        self.folder = folder
        self.inputs = tuple(tensor.spec() for tensor in manifest.graphs[folder].inputs)
        self.outputs = tuple(tensor.spec() for tensor in manifest.graphs[folder].outputs)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name.

        Raises :class:`~controlnext.errors.InputError` where ``feed`` contradicts ``inputs``, before anything
        runs, and :class:`~controlnext.errors.WorkError` where the engine itself fails.
        """
        bind(self.inputs, feed, self.folder)
        return self._run(feed)

    @abstractmethod
    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def close(self) -> None:
        """Give back the memory; the engine cannot run any more."""


class Backend(ABC):
    """A library that runs graphs, set up for one device."""

    @abstractmethod
    def open(self, bundle: Path, manifest: Manifest, folder: str, *, cache: bool = True) -> Engine:
        """The engine of the graph ``folder``; all as in :func:`controlnext.engines.open_engine`."""
