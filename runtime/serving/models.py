"""The served bundles: loaded when they are first asked for, closed again where memory is short."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from controlnext.errors import InputError, QueueFullError, UnknownModelError, WorkError
from controlnext.runtime.serving.errors import is_failure, stopping
from controlnext.runtime.serving.loading import Load, Model, ServedBundle, check_bundle, load_model
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.settings import MIB, ServerSettings

logger = logging.getLogger(__name__)

_PATIENCE = 2.0
"""Seconds for cancelled requests to let go of their model before it is closed at the end."""


@dataclass(eq=False)
class _Place:
    """The place of one bundle; it is open while it has a model and is not about to be closed."""

    bundle: ServedBundle
    size: int
    """Bytes that the model takes: the size of its files until it was loaded once."""
    measured: int = 0
    """The most that loading it took."""
    model: Model | None = None
    closing: bool = False
    users: int = 0
    used: int = 0
    """The turn of the last use: the lowest is the least recently used."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    suspect: bool = False
    """Whether the last request failed, and not by its own fault."""
    queue: list[asyncio.Future[Model]] = field(default_factory=list)
    """Those who wait for the model to be loaded."""
    loading: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for the model or in its batcher."""
        return len(self.queue) + (self.model.batcher.waiting if self.model else 0)

    @property
    def running(self) -> int:
        """The number of requests at work."""
        return self.model.batcher.running if self.model else 0

    @property
    def memory(self) -> int:
        """Bytes of the loaded engines."""
        return self.model.memory if self.model else 0


class Models:
    """The served bundles by name, the name of their directory. All methods belong to one event loop.

    A model is loaded when it is first asked for; requests that ask meanwhile wait. Where it has no room in
    ``settings.memory`` beside the others, the least recently used are closed, each as soon as nobody uses it:
    no request is ended, and requests that come for it later wait for their turn. A model that is larger than
    that by itself is loaded alone.

    Args:
        bundles: directories of bundles; every one is opened once to check it.
        load: opens the pipeline of a bundle.

    Raises:
        InputError: two bundles have the same name, or one cannot be served.
        BundleError: a bundle is missing or damaged.
    """

    def __init__(
        self, bundles: Sequence[Path], settings: ServerSettings, load: Load, metrics: Metrics
    ) -> None:
        self._settings, self._load, self._metrics = settings, load, metrics
        self._places: dict[str, _Place] = {}
        for path in bundles:
            bundle = check_bundle(path, load)
            if bundle.name in self._places:
                other = self._places[bundle.name].bundle.path
                if other == bundle.path:
                    raise InputError(f"{path} is given twice; give it once", argument="bundles")
                raise InputError(
                    f"{other} and {path} have the same name {bundle.name!r}; rename one of the directories",
                    argument="bundles",
                )
            self._places[bundle.name] = _Place(bundle, bundle.bytes)
            metrics.watch(bundle.name, self._places[bundle.name])
        self._turn, self._uses = asyncio.Lock(), 0
        self._worker = ThreadPoolExecutor(1, "controlnext-load")
        self._ready = self._draining = self._closed = False

    def names(self) -> list[str]:
        """Return the names of the served bundles, in the order in which they were given."""
        return list(self._places)

    def describe(self, model: str) -> ServedBundle:
        """Return what is known of a bundle before it is loaded; raise :class:`UnknownModelError`."""
        return self._place(model).bundle

    @property
    def ready(self) -> bool:
        """Whether the first bundle was loaded and requests are admitted."""
        return self._ready and not self._draining

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop and admits no more requests."""
        return self._draining

    @property
    def users(self) -> int:
        """The number of requests that use a model or wait for one."""
        return sum(place.users + len(place.queue) for place in self._places.values())

    async def start(self) -> None:
        """Load the first bundle; raise what :meth:`Pipeline.load` and its engines raise."""
        place = next(iter(self._places.values()))
        await self._enter(place)
        self._leave(place)
        self._ready = True

    @asynccontextmanager
    async def use(self, model: str) -> AsyncIterator[Model]:
        """Yield the model of that name, loaded; it stays loaded until the block ends.

        Raises:
            UnknownModelError: no bundle of that name is served.
            StoppingError: the server is about to stop.
            QueueFullError: as many requests wait for the model to be loaded as may wait and run.
            WorkError: the bundle cannot be loaded.
        """
        place = self._place(model)
        if self._draining:
            raise stopping()
        try:
            found = await self._enter(place)
        except InputError as error:
            # a bundle that was damaged meanwhile is no mistake of the request
            logger.error("%s cannot be loaded: %s", model, error)
            raise WorkError(f"the model {model} cannot be loaded; the server's log has the reason") from error
        try:
            yield found
        except Exception as error:
            place.suspect = place.suspect or is_failure(error)
            raise
        else:
            place.suspect = False
        finally:
            self._leave(place)

    async def check(self) -> None:
        """Take a step with each model whose last request failed; raise what the step raises."""
        for place in self._places.values():
            if place.suspect and place.model and not place.closing:
                model = self._count(place, place.model)
                try:
                    await asyncio.to_thread(model.probe)
                    place.suspect = False
                finally:
                    self._leave(place)

    async def release(self, model: str) -> None:
        """Close a model once nobody uses it; when it is asked for, it is loaded again."""
        place = self._place(model)
        async with self._turn:
            if place.model and not place.queue:
                place.closing = True
                await self._close(place)

    def drain(self) -> None:
        """Admit no more requests; those that were admitted go on."""
        self._draining = True

    async def close(self) -> None:
        """Cancel what runs or waits and close all models; one that is being loaded is closed once it is."""
        self._draining = self._closed = True
        for place in self._places.values():
            _answer(place, stopping())
            if place.model:
                await asyncio.to_thread(place.model.batcher.close, cancel=True)
        async with self._turn:
            for place in self._places.values():
                await self._close(place, _PATIENCE)
        self._worker.shutdown()

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise UnknownModelError(
                f"there is no model {name!r}; accepted: {', '.join(self._places)}", argument="model"
            )
        return self._places[name]

    async def _enter(self, place: _Place) -> Model:
        """Return the model once it is loaded, and count its user."""
        if place.model and not place.closing:
            return self._count(place, place.model)
        if len(place.queue) >= self._settings.max_waiting + self._settings.max_rows:
            raise QueueFullError(len(place.queue))
        granted: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
        place.queue.append(granted)
        if place.loading is None:
            place.loading = asyncio.create_task(self._open(place))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                place.queue = [other for other in place.queue if other is not granted]
            elif not granted.exception():
                self._leave(place)
            raise

    def _count(self, place: _Place, model: Model) -> Model:
        self._uses += 1
        place.users, place.used = place.users + 1, self._uses
        place.idle.clear()
        return model

    def _leave(self, place: _Place) -> None:
        self._uses += 1
        place.users, place.used = place.users - 1, self._uses
        if not place.users:
            place.idle.set()

    async def _open(self, place: _Place) -> None:
        """Load the model in its turn and give it to those who wait, or the error that there was."""
        try:
            async with self._turn:
                await self._make_room(place)
                if self._closed:
                    raise stopping()
                if place.queue:
                    await self._fill(place)
                    # what was measured may be more than the files that were counted before
                    await self._make_room(place)
        except Exception as error:
            _answer(place, error)
        finally:
            place.loading = None

    async def _fill(self, place: _Place) -> None:
        """Load the model of a place that has none, and give it to those who wait."""
        name, started = place.bundle.name, time.monotonic()
        load = partial(load_model, place.bundle, self._load, self._settings, self._metrics.observer(name))
        model = await asyncio.get_running_loop().run_in_executor(self._worker, load)
        # loaded again it takes memory that others gave back: then its growth says too little
        place.measured = max(place.measured, model.memory)
        place.model, place.size = model, place.measured
        seconds, size = time.monotonic() - started, model.memory / MIB
        logger.info("loaded %s in %.1f s: %s, %.0f MiB", name, seconds, model.pipe.backend, size)
        waiting, place.queue = place.queue, []
        for granted in waiting:
            if not granted.done():
                granted.set_result(self._count(place, model))

    async def _make_room(self, place: _Place) -> None:
        """Close other models, those that nobody uses first, until ``place`` fits beside the rest."""
        others = [other for other in self._places.values() if other.model and other is not place]
        excess = place.size + sum(other.size for other in others) - self._settings.memory_bytes
        chosen = []
        for other in sorted(others, key=lambda other: (other.users > 0, other.used)):
            if excess > 0:
                other.closing, excess = True, excess - other.size
                chosen.append(other)
        for other in chosen:
            await self._close(other)

    async def _close(self, place: _Place, patience: float | None = None) -> None:
        """Close the model of a place, if it has one, once nobody uses it or ``patience`` seconds have
        passed."""
        if not place.model:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(place.idle.wait(), patience)
        model, place.model, place.closing = place.model, None, False
        await asyncio.get_running_loop().run_in_executor(self._worker, model.close)
        logger.info("closed %s", place.bundle.name)


def _answer(place: _Place, error: Exception) -> None:
    """Give an error to those who wait for a model."""
    waiting, place.queue = place.queue, []
    for granted in waiting:
        if not granted.done():
            granted.set_exception(error)
