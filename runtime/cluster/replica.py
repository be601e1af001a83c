"""A replica: the application of the embedded server, whose requests come from the front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

from ray import serve
from starlette.types import Message

from controlnext.bundle.remote import local_copy
from controlnext.errors import ControlNeXtError
from controlnext.runtime.cluster.exchange import answer
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.serving.app import make_app
from controlnext.runtime.serving.clip_jobs import ClipJobs
from controlnext.runtime.serving.clip_list import Listed
from controlnext.runtime.serving.loading import Load
from controlnext.runtime.serving.log_format import write_worker_log
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models


class Replica:
    """Loads the first bundle, then answers requests; every loaded bundle has its batcher.

    Args:
        fields: those of a :class:`ClusterSpec`.
        load: opens the pipeline of a bundle in place of :meth:`ClusterSpec.load`.

    Raises:
        ControlNeXtError: the bundles cannot be served. Serve then says that the deployment failed.
    """

    async def __init__(self, fields: dict[str, Any], load: Load | None = None) -> None:  # type: ignore[misc]  # Serve awaits it
        spec = ClusterSpec.read(fields)
        write_worker_log(as_json=spec.log_json, prompts=spec.log_prompts)
        self._metrics = Metrics()
        bundles = [local_copy(bundle) for bundle in spec.bundles]
        self._models = Models(bundles, spec.settings, load or spec.load(), self._metrics)
        # whoever comes here has shown its key to the front
        self._app = make_app(self._models, spec.settings, self._metrics)
        self._opened = AsyncExitStack()
        await self._opened.enter_async_context(self._app.router.lifespan_context(self._app))
        await self._models.start()
        self._opened.push_async_callback(self._models.close)
        most = most_models(self._models, spec.settings.memory_bytes)
        self._hold = serve.multiplexed(max_num_models_per_replica=most)(_loader(self._models))

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[list[Message]]:
        """Yield the messages of the answer to a request as they come; see :func:`answer`."""
        if (name := serve.get_multiplexed_model_id()) in self._models.names():
            # what is wrong with a model, the application tells
            with suppress(ControlNeXtError):
                await self._hold(name)
        messages = answer(self._app, scope, body)
        try:
            async for some in messages:
                yield some
        finally:
            await messages.aclose()

    async def answer_whole(self, scope: dict[str, Any], body: bytes) -> list[Message]:
        """Return all messages of the answer to a request at once."""
        async with aclosing(self.answer(scope, body)) as messages:
            return [message async for some in messages for message in some]

    def is_ready(self) -> bool:
        """Return whether it takes requests."""
        return self._models.ready

    def metrics(self) -> bytes:
        """Return the metrics of this replica in Prometheus' text format."""
        return self._metrics.text()

    def clips(self) -> list[Listed]:
        """Return the clips of this replica."""
        clips: ClipJobs = self._app.state.clips
        return clips.listed()

    async def check_health(self) -> None:
        """Raise if a request failed and a step fails since: Serve then replaces this replica."""
        await self._models.check()

    async def __del__(self) -> None:
        """Close the models; Serve calls it when the replica has nothing left to do."""
        if opened := self.__dict__.pop("_opened", None):
            await opened.aclose()


class HeldModel:
    """A model that Serve knows this replica to have; Serve deletes the one that it asked for longest ago."""

    def __init__(self, models: Models, name: str) -> None:
        self._models, self._name = models, name
        self._loop = asyncio.get_running_loop()

    def __del__(self) -> None:
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._models.release(self._name), self._loop)


def _loader(models: Models) -> Callable[[str], Awaitable[HeldModel]]:
    """Return what loads a model by name; Serve keeps its list of them on this function."""

    async def load(name: str) -> HeldModel:
        async with models.use(name):
            return HeldModel(models, name)

    return load


def most_models(models: Models, memory: float) -> int:
    """Return how many of the largest bundle fit into ``memory``, at least one and at most all."""
    largest = max(models.describe(name).bytes for name in models.names())
    return int(max(1, min(len(models.names()), memory // max(largest, 1))))
