"""Requests that are answered elsewhere: by one replica, or by that of all which has the clip."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any

from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from controlnext.errors import QueueFullError
from controlnext.runtime.cluster.exchange import carried
from controlnext.runtime.cluster.merged_metrics import merged
from controlnext.runtime.cluster.reply import ReplicaReply, Whole, body_of, unavailable, until_left
from controlnext.runtime.serving.errors import HttpError, too_busy
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.request_ids import send_refusal
from controlnext.runtime.serving.videos import CLIPS

logger = logging.getLogger(__name__)

FRONT, REPLICA = "Front", "Replica"
"""Names of the deployments."""

_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"|name="model"\r\n\r\n([^\r\n]{1,200})\r\n')
"""The field ``model`` of a body, in JSON or in a form. It only decides which replica is asked first."""
_STREAM = re.compile(rb'"stream"\s*:\s*true|name="stream"\r\n\r\n')
"""The field ``stream`` of a body. Other answers come whole, in one message in place of several."""
_PAUSES = (0.2, 1.0, 3.0)
"""Seconds before a request whose replica died is given to another one."""
_LATER = 5
"""Seconds after which one of those that wait may have begun."""
_PATIENCE = 10.0
"""Seconds for all replicas to answer a question that needs no engine."""
_DIED = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, DeploymentUnavailableError)


class Elsewhere:
    """An ASGI middleware that has requests answered by replicas.

    A request whose replica dies before its answer began is given to another one: the same arguments make the
    same image.
    """

    def __init__(self, app: ASGIApp, replicas: DeploymentHandle, several: bool) -> None:
        self._app, self._replicas, self._several = app, replicas, several

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        path = scope.get("path", "")
        known = next((route for route in _ROUTES if route.fits(path, scope.get("method", ""))), None)
        if known is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = SimpleNamespace(path=known.name or path)
        try:
            await known.answer(self, scope, receive, send)
        except HttpError as refusal:
            await send_refusal(send, refusal)

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have one replica answer."""
        body = await body_of(receive)
        found = _MODEL.search(body) if self._several else None
        model = (found[1] or found[2]).decode("utf-8", "replace") if found else ""
        in_parts = _STREAM.search(body) is not None
        chosen = self._replicas.options(
            stream=in_parts, method_name="answer" if in_parts else "answer_whole", multiplexed_model_id=model
        )
        left = asyncio.create_task(until_left(receive))
        reply = ReplicaReply(scope, send)
        try:
            for pause in (*_PAUSES, None):
                try:
                    messages = chosen.remote(carried(scope), body)
                    await reply.pass_on(messages if in_parts else Whole(messages), left)
                    return
                except BackPressureError as error:
                    raise too_busy(QueueFullError(error.args[1]), _LATER) from error
                except _DIED as error:
                    logger.warning("a replica did not answer: %s", type(error).__name__)
                    if reply.begun:
                        await reply.break_off()
                        return
                    if pause is None:
                        raise unavailable() from error
                    await asyncio.sleep(pause)
        finally:
            left.cancel()

    async def ask_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the replica answer that has the clip; the others say 404."""
        body = await body_of(receive)
        answers = await _ask(self._replicas, "answer_whole", carried(scope), body)
        if not answers:
            raise unavailable()
        answers.sort(key=lambda messages: messages[0]["status"] == 404)
        reply = ReplicaReply(scope, send)
        for message in answers[0]:
            await reply.send(message)

    async def list_clips(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application here list the clips of all replicas."""
        found = await _ask(self._replicas, "clips")
        if not found:
            raise unavailable()
        scope.setdefault("state", {})[CLIPS] = list(chain(*found))
        await self._app(scope, receive, send)

    async def tell_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the sums of the metrics of all replicas and fronts."""
        handles = (serve.get_deployment_handle(FRONT), self._replicas)
        texts = await asyncio.gather(*(_ask(handle, "metrics") for handle in handles))
        content = await asyncio.to_thread(merged, chain(*texts))
        await Response(content, media_type=Metrics.content_type)(scope, receive, send)

    async def tell_ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 200 if a replica is there that has loaded the first bundle."""
        ready = any(await _ask(self._replicas, "is_ready"))
        content = {"status": "ready" if ready else "loading"}
        await JSONResponse(content, 200 if ready else 503)(scope, receive, send)


@dataclass(frozen=True)
class _Route:
    """A route that needs replicas: its paths, its name in the log if that differs, and its method if one."""

    paths: re.Pattern[str]
    answer: Callable[[Elsewhere, Scope, Receive, Send], Awaitable[None]]
    method: str | None = None
    name: str | None = None

    def fits(self, path: str, method: str) -> bool:
        """Return whether it is the route of a request."""
        return self.method in (None, method) and self.paths.fullmatch(path) is not None


_ROUTES = (
    _Route(re.compile("/v1/images/(generations|edits)|/v1/videos"), Elsewhere.forward, "POST"),
    _Route(re.compile("/v1/videos"), Elsewhere.list_clips, "GET"),
    _Route(re.compile("/v1/videos/[^/]+"), Elsewhere.ask_all, name="/v1/videos/{video_id}"),
    _Route(re.compile("/v1/videos/[^/]+/content"), Elsewhere.ask_all, name="/v1/videos/{video_id}/content"),
    _Route(re.compile("/metrics"), Elsewhere.tell_metrics, "GET"),
    _Route(re.compile("/health/ready"), Elsewhere.tell_ready),
)


async def _ask(handle: DeploymentHandle, method: str, *arguments: Any) -> list[Any]:
    """Return what all of a deployment answer that can be reached."""
    try:
        replies = handle.broadcast(method, *arguments)
        found = await replies.results_async(timeout_s=_PATIENCE, return_exceptions=True)
    except (TimeoutError, RayError, DeploymentUnavailableError):
        return []
    return [one for one in found if not isinstance(one, BaseException)]
