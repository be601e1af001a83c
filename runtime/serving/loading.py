"""Loading a bundle for serving: its engines, a warm-up step, the memory that it took."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.format import graph_files
from controlnext.closeable import Closeable
from controlnext.errors import EngineError, QueueFullError
from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.batching.observer import Observer
from controlnext.runtime.loras.folder import lora_files
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.serving.settings import ServerSettings
from controlnext.runtime.warm_up import LARGEST_ON_CPU, black_call, check_takes_prompts, warm_up

Load = Callable[[Path], Pipeline]
"""Opens the pipeline of a bundle, with the backend and device that the server uses."""


@dataclass(frozen=True)
class ServedBundle:
    """A bundle that is served, loaded or not.

    ``name``: that of its directory. ``task``: ``"image"`` or ``"video"``. ``created``: when it was written,
    in seconds since 1970. ``bytes``: the size of its files.
    """

    name: str
    path: Path
    task: str
    created: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Model(Closeable):
    """A loaded bundle: its pipeline and the batcher that runs its requests; ``memory``: bytes that loading
    took."""

    bundle: ServedBundle
    pipe: Pipeline
    batcher: Batcher
    memory: int

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.bundle.name

    @property
    def created(self) -> int:
        """When the bundle was written, in seconds since 1970."""
        return self.bundle.created

    @property
    def task(self) -> str:
        """The kind of its results: ``"image"`` or ``"video"``."""
        return self.bundle.task

    def probe(self) -> None:
        """Take one step, beside the others; raise what it raises."""
        step: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
        with suppress(EngineError, QueueFullError):
            self.batcher.submit(**black_call(self.pipe, LARGEST_ON_CPU), **step).result()

    def close(self) -> None:
        """Cancel what runs and close the engines."""
        self.batcher.close(cancel=True)
        self.pipe.close()


def check_bundle(path: Path, load: Load) -> ServedBundle:
    """Open a bundle, without its engines, and return what is known of it.

    Raises the errors of ``load``, and :class:`InputError` for a bundle without text encoders: requests bring
    texts, not embeddings.
    """
    with load(path) as pipe:
        manifest, family = pipe.bundle.manifest, pipe.family
        check_takes_prompts(path, manifest, family)
    path = path.resolve()
    size = sum(entry.bytes for entry in manifest.files.values())
    created = int((path / MANIFEST).stat().st_mtime)
    return ServedBundle(path.name, path, family.task, created, size)


def load_model(bundle: ServedBundle, load: Load, settings: ServerSettings, observer: Observer) -> Model:
    """Load a bundle: open its engines, run a warm-up step. Nothing stays open after an error."""
    with ExitStack() as opened:
        pipe = opened.enter_context(load(bundle.path))
        memory = _warm_up(pipe, settings.max_size)
        if settings.loras is not None:
            pipe.offer_loras(lora_files(settings.loras))
        batcher = Batcher(
            pipe, max_rows=settings.max_rows, max_waiting=settings.max_waiting, observer=observer
        )
        opened.pop_all()
    return Model(bundle, pipe, batcher, memory)


def _warm_up(pipe: Pipeline, largest: int) -> int:
    """Warm the pipeline up; return the bytes of memory that this took.

    The memory is the growth of this process, or the size of the engines' files where that is more: a GPU's
    memory is not part of the process, and other requests may end meanwhile.
    """
    before = _resident_bytes()
    warm_up(pipe, largest)
    return max(_resident_bytes() - before, _file_bytes(pipe))


def _file_bytes(pipe: Pipeline) -> int:
    """Return the size of the files of the graphs whose engines are open."""
    manifest = pipe.bundle.manifest
    return sum(entry.bytes for name in pipe.bundle.backends for entry in graph_files(manifest, name).values())


def _resident_bytes() -> int:
    """Return the memory of this process that is in use, 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
