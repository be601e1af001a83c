"""A pipeline whose denoiser sleeps: it takes time and no processor, as one on a GPU of its own would."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

import numpy as np

from controlnext.bundle.manifest import Manifest
from controlnext.engines import Backend, Engine, select_backend
from controlnext.families import get_family
from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.tensor_spec import bind
from controlnext.types import Feed

STEP_S = 0.1
"""Seconds of a step."""


class SleepingBackend(Backend):
    """A backend whose denoiser sleeps in place of computing; other graphs run on the processor."""

    def __init__(self) -> None:
        self._backend = select_backend("auto", "cpu", "auto", 1)

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open a graph; see :meth:`Backend.open`."""
        if graph_name == get_family(manifest.family).denoiser:
            return _SleepingEngine(manifest, graph_name, "a stand-in that sleeps")
        return self._backend.open(bundle, manifest, graph_name, cache=cache)


class _SleepingEngine(Engine):
    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        time.sleep(STEP_S)
        sizes = bind(self.inputs, feed, self.graph_name)
        return {output.name: np.zeros(output.shape_at(sizes), np.float32) for output in self.outputs}

    def _close(self) -> None:
        pass


def sleeping_pipeline(path: Path) -> Pipeline:
    """Open the pipeline of a bundle with a denoiser that sleeps."""
    return Pipeline.of(Bundle(path, SleepingBackend(), cache=False))
