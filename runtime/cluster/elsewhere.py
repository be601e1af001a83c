"""Requests that no single replica can answer: all of them are asked, and their answers made one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from controlnext.runtime.cluster.exchange import WholeAnswer, carried
from controlnext.runtime.cluster.merged_metrics import merged
from controlnext.runtime.serving.errors import HttpError
from controlnext.runtime.serving.request_ids import send_refusal
from controlnext.runtime.serving.videos import CLIPS

APPLICATION, REPLICA = "controlnext", "Replica"
"""Names of the application and of its deployment."""
_PATIENCE = 10.0
"""Seconds for all replicas to answer a question that needs no engine."""
_LATER = 5
"""Seconds after which another replica may be there."""


class Replicas:
    """The replicas of the application, as a process of the cluster reaches them."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def ask(self, method: str, *arguments: Any) -> list[Any] | None:
        """Return what all replicas answer that can be reached; None if the application is not there.

        They answer at once, whatever waits for a place.
        """
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(_handle)
            replies = self._handle.broadcast(method, *arguments)
            found = await replies.results_async(timeout_s=_PATIENCE, return_exceptions=True)
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return []
        except (RayServeException, KeyError):
            return None
        return [one for one in found if not isinstance(one, BaseException)]


def _handle() -> DeploymentHandle:
    return serve.get_deployment_handle(REPLICA, APPLICATION)


class Elsewhere:
    """An ASGI middleware that has all replicas answer where one of them does not know enough.

    These are clips, which are in one of them, metrics, which are their sums, and the probes, which must not
    wait behind images. All other requests go to ``app``.
    """

    def __init__(self, app: ASGIApp, replicas: Replicas | None = None) -> None:
        self._app, self._replicas = app, replicas or Replicas()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        join = _joined_by(scope) if scope["type"] == "http" else None
        answers = await self._answers(scope) if join else None
        if join is None or answers is None:
            await self._app(scope, receive, send)
        elif answers:
            await (await asyncio.to_thread(join, answers)).send(send)
        else:
            await send_refusal(send, unavailable())

    async def _answers(self, scope: Scope) -> list[WholeAnswer] | None:
        """Return the answers of all replicas; to a request for the list of clips those of all are given."""
        request = carried(scope)
        if _LIST.fullmatch(_line(scope)):
            clips = await self._replicas.ask("clips") or ()
            request["state"] = {CLIPS: list(chain(*clips))}
        return await self._replicas.ask("answer", request)


def unavailable() -> HttpError:
    """Return the answer to a request for which there is no replica."""
    return HttpError(
        503,
        "no replica is there to answer, or the one that did has ended; repeat the request",
        kind="server_error",
        code="no_replica",
        headers={"Retry-After": str(_LATER)},
    )


def _line(scope: Scope) -> str:
    return f"{scope['method']} {scope['path']}"


def _joined_by(scope: Scope) -> Callable[[Sequence[WholeAnswer]], WholeAnswer] | None:
    """Return what makes one answer of several, if all replicas have to be asked."""
    return next((join for lines, join in _ROUTES.items() if lines.fullmatch(_line(scope))), None)


def _any_that(status: Callable[[int], bool]) -> Callable[[Sequence[WholeAnswer]], WholeAnswer]:
    """Return what takes the first answer of such a status, or else the first of all."""
    return lambda answers: next((one for one in answers if status(one.status)), answers[0])


def _sums(answers: Sequence[WholeAnswer]) -> WholeAnswer:
    """Return the sums of metrics, or the refusal of the request."""
    first = answers[0]
    if first.status != 200:
        return first
    headers = [(name, value) for name, value in first.headers if name.lower() != b"content-length"]
    return WholeAnswer(200, headers, merged([one.body for one in answers if one.status == 200]))


_LIST = re.compile("GET /v1/videos")
_ROUTES = {
    _LIST: _any_that(lambda status: status == 200),
    re.compile("[A-Z]+ /v1/videos/[^/]+(/content)?"): _any_that(lambda status: status != 404),
    re.compile("GET /metrics"): _sums,
    re.compile("(GET|HEAD) /health/(live|ready)"): _any_that(lambda status: status == 200),
}
