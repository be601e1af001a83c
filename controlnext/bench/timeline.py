"""Time of each part of an image that the runtime makes."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from controlnext.bundle.manifest import Manifest
from controlnext.engines import Backend, Engine
from controlnext.engines.steps import StepKind
from controlnext.families.schema import PREVIEW_DECODER, VAE_DECODER
from controlnext.runtime import Pipeline
from controlnext.types import Feed, FloatArray

PARTS = ("load", "encode", "control", "denoiser", "sampler", "decode", "image")
"""Opening engines; text and image encoders; tokenizing, control image and its prologue, initial noise; the
denoiser's engine with its copies to and from a GPU; sampler, guidance and checks; the decoder's engine;
making PIL images."""


class TimedBackend(Backend):
    """A backend that wraps ``backend`` and adds up seconds: ``opening`` of all engines, ``running`` by graph
    name."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.opening = 0.0
        self.running: dict[str, float] = defaultdict(float)

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open an engine of the wrapped backend and count its seconds; see :meth:`Backend.open`."""
        started = time.perf_counter()
        engine = self._backend.open(bundle, manifest, graph_name, cache=cache)
        self.opening += time.perf_counter() - started
        return _TimedEngine(engine, manifest, self.running)


class _TimedEngine(Engine):
    def __init__(self, engine: Engine, manifest: Manifest, running: dict[str, float]) -> None:
        super().__init__(manifest, engine.graph_name)
        self._engine, self._running = engine, running
        self._stand_for(engine)

    def _run_prologue(self, feed: Feed) -> dict[str, np.ndarray]:
        return self._engine._run_prologue(feed)

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        with self._timed():
            return self._engine._run(feed, replaced)

    def _run_cached(self, feed: Feed, replaced: Collection[str], kind: StepKind) -> dict[str, np.ndarray]:
        with self._timed():
            return self._engine._run_cached(feed, replaced, kind)

    def _open_shallow(self) -> None:
        self._engine._open_shallow()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._running[self.graph_name] += time.perf_counter() - started

    def _close(self) -> None:
        self._engine.close()


def image_timeline(
    pipeline: Pipeline, timed: TimedBackend, arguments: Mapping[str, Any], *, tiny: bool = False
) -> tuple[dict[str, float], list[Image.Image]]:
    """Run ``pipeline`` with ``arguments``; return the seconds of each of :data:`PARTS`, and the images.

    ``timed``: the backend of the pipeline's bundle. ``tiny``: whether the tiny VAE of previews decodes.
    """
    decoder = PREVIEW_DECODER if tiny else VAE_DECODER
    denoiser, opened, before = pipeline.bundle.family.denoiser, timed.opening, dict(timed.running)
    marks, loads = [time.perf_counter()], [timed.opening]

    def mark() -> None:
        marks.append(time.perf_counter())
        loads.append(timed.opening)

    steps = pipeline.stream(**arguments)
    mark()
    (last,) = deque(steps, maxlen=1)
    mark()
    images = drawn_images(pipeline, last.latents, arguments.get("frames_per_batch"), tiny=tiny)
    mark()
    prepared, sampled, drawn = np.diff(marks) - np.diff(loads)
    ran = {graph_name: seconds - before.get(graph_name, 0.0) for graph_name, seconds in timed.running.items()}
    encoded = sum(seconds for graph_name, seconds in ran.items() if graph_name not in (denoiser, decoder))
    seconds = {
        "load": timed.opening - opened,
        "encode": encoded,
        "control": prepared - encoded,
        "denoiser": ran[denoiser],
        "sampler": sampled - ran[denoiser],
        "decode": ran[decoder],
        "image": drawn - ran[decoder],
    }
    return {part: float(seconds[part]) for part in PARTS}, images


def drawn_images(
    pipeline: Pipeline, latents: FloatArray, chunk: int | None = None, *, tiny: bool = False
) -> list[Image.Image]:
    """Return the images of latents, or the frames of a clip's."""
    if not tiny:
        return list(pipeline.images(latents, chunk))
    previews: list[Any] = list(pipeline.preview(latents))
    return previews[0] if previews and isinstance(previews[0], list) else previews
