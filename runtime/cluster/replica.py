"""A replica: the application of the embedded server, whose requests come from Serve's proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlnext.bundle.remote import local_copy
from controlnext.errors import ControlNeXtError
from controlnext.runtime.cluster.elsewhere import Elsewhere
from controlnext.runtime.cluster.exchange import WholeAnswer, answer_of
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.serving.access_log import AccessLog
from controlnext.runtime.serving.app import make_app
from controlnext.runtime.serving.clip_jobs import ClipJobs
from controlnext.runtime.serving.clip_list import Listed
from controlnext.runtime.serving.loading import Load
from controlnext.runtime.serving.log_format import write_worker_log
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.request_ids import HEADER


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
        write_worker_log(as_json=spec.log_json, prompts=spec.log_prompts, level=spec.log_level)
        settings, metrics = spec.guarded(), Metrics()
        bundles = [local_copy(bundle) for bundle in spec.bundles]
        self._models = Models(bundles, settings, load or spec.load(), metrics)
        self._app = make_app(self._models, settings, metrics, local=spec.local)
        keys = settings.api_keys
        self._logged = AccessLog(self._app, metrics, prompts=spec.log_prompts, cancels_left=True, keys=keys)
        # of a clip that it does not have, another replica tells
        self._asked = AccessLog(self._app, metrics, unlogged=(404,), keys=keys)
        await self._models.start()
        most = most_models(self._models, settings.memory_bytes)
        self._hold = serve.multiplexed(max_num_models_per_replica=most)(_loader(self._models))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application, as Serve asks for it when this object is made."""
        return Elsewhere(self._holding)

    async def _holding(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with the model of which Serve says that this replica is to have it."""
        if scope["type"] == "http" and (name := serve.get_multiplexed_model_id()) in self._models.names():
            # what is wrong with a model, the application tells
            with suppress(ControlNeXtError):
                await self._hold(name)
        await self._logged(scope, receive, _without_request_id(send))

    async def answer(self, scope: dict[str, Any]) -> WholeAnswer:
        """Return the answer to a request that all replicas get."""
        return await answer_of(self._asked, scope)

    def names(self) -> list[str]:
        """Return the names of the models."""
        return self._models.names()

    def clips(self) -> list[Listed]:
        """Return the clips of this replica."""
        clips: ClipJobs = self._app.state.clips
        return clips.listed()

    async def check_health(self) -> None:
        """Raise if a request failed and a step fails since: Serve then replaces this replica."""
        await self._models.check()

    async def __del__(self) -> None:
        """Close the models; Serve calls it when the replica has nothing left to do."""
        if models := self.__dict__.pop("_models", None):
            await models.close()


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


def _without_request_id(send: Send) -> Send:
    """Return what sends an answer without the header of the request's id, which Serve's proxy adds."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            del MutableHeaders(scope=message)[HEADER]
        await send(message)

    return tell
