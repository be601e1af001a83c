"""The middlewares before Serve's proxies: requests whose replica died are given to another one.

Serve's proxies load :func:`middlewares` where an environment variable named it when Ray was started
(``SETTINGS`` in ``ray_cluster.py``). Without it the application works too, with Serve's own errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlnext.errors import QueueFullError
from controlnext.runtime.cluster.elsewhere import Elsewhere, Replicas, unavailable
from controlnext.runtime.serving.errors import too_busy
from controlnext.runtime.serving.request_ids import HEADER, RequestIds, request_id, send_refusal

logger = logging.getLogger(__name__)

RETRY_AFTER = 5
"""Seconds after which one of those that wait may have begun."""

_WORK = re.compile("/v1/images/(generations|edits)|/v1/videos")
_OF_SERVE = "/-/"
"""Before the paths of Serve's own, such as the probe of a proxy."""
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"|name="model"\r\n\r\n([^\r\n]{1,200})\r\n')
"""The field ``model`` of a body, in JSON or in a form. It only decides which replica is asked first."""
_MODEL_HEADER = b"serve_multiplexed_model_id"
_MOST_KEPT = 64 << 20
"""Bytes of the longest body that is kept for another replica."""
_PAUSES = (0.2, 1.0, 3.0)
"""Seconds before a request whose replica died is given to another one."""
_FRESH = 10.0
"""Seconds for which the names of the models are taken as known."""
_REFUSALS = (404, 429, 503)
"""Statuses of Serve's own answers: an application that is not there (it stops), a full queue, no replica."""
_WAITING = re.compile(rb"num_queued_requests=(\d+)")


def middlewares() -> list[Middleware]:
    """Return what the proxies put before Serve's own application."""
    replicas = Replicas()
    # the last one is the first that a request passes
    return [
        Middleware(Retries, replicas=replicas),
        Middleware(Elsewhere, replicas=replicas),
        Middleware(_KnownId),
        Middleware(RequestIds),
    ]


class _KnownId:
    """An ASGI middleware that gives Serve and the replicas the id that :class:`RequestIds` chose."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [(name, value) for name, value in scope["headers"] if name.lower() != HEADER.encode()]
            scope = {**scope, "headers": [*headers, (HEADER.encode(), request_id(scope).encode())]}
        await self._app(scope, receive, send)


class Retries:
    """An ASGI middleware that repeats a request whose replica died before its answer began.

    The same arguments make the same image. It also names the model of a request to Serve, which then prefers
    a replica that has it, and gives Serve's refusals the shape of the application's.
    """

    def __init__(self, app: ASGIApp, replicas: Replicas) -> None:
        self._app, self._replicas = app, replicas
        self._names: Sequence[str] = ()
        self._asked = -_FRESH

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, again if need be."""
        if scope["type"] != "http" or scope["path"].startswith(_OF_SERVE):
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        if scope["method"] == "POST" and _WORK.fullmatch(scope["path"]):
            scope = {**scope, "headers": [*scope["headers"], *await self._model(body)]}
        for pause in (*_PAUSES, None):
            reply = _Reply(send)
            await self._app(dict(scope), body.again(), reply.send)
            if reply.ended or body.left:
                return
            logger.warning("a replica did not answer")
            if reply.begun:
                await reply.break_off()
                return
            if pause is None or not body.is_kept:
                break
            await asyncio.sleep(pause)
        await send_refusal(send, unavailable())

    async def _model(self, body: _Body) -> list[tuple[bytes, bytes]]:
        """Return the header that tells Serve the model, where several are served and this is one."""
        if time.monotonic() - self._asked > _FRESH:
            answers = await self._replicas.ask("names")
            self._names, self._asked = answers[0] if answers else (), time.monotonic()
        if len(self._names) < 2:
            return []
        found = _MODEL.search(await body.content())
        name = (found[1] or found[2]) if found else b""
        return [(_MODEL_HEADER, name)] if name.decode("utf-8", "replace") in self._names else []


class _Body:
    """The body of a request, which can be received again; after it come the client's own messages."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._parts: list[Message] = []
        self._unread: list[Message] = []
        self._size = 0
        self.left = False

    @property
    def is_kept(self) -> bool:
        """Whether it can be received again: it is not too long."""
        return self._size <= _MOST_KEPT

    async def content(self) -> bytes:
        """Return the whole body, or the beginning of one that is too long to be kept."""
        more = True
        while more and self.is_kept:
            more = (await self._following()).get("more_body", False)
        self._unread = list(self._parts)
        return b"".join(part.get("body", b"") for part in self._parts)

    def again(self) -> Receive:
        """Return what receives it from its beginning."""
        self._unread = list(self._parts)
        return self._next

    async def _next(self) -> Message:
        return self._unread.pop(0) if self._unread else await self._following()

    async def _following(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
            return message
        if self.is_kept:
            self._parts.append(message)
        self._size += len(message.get("body", b""))
        return message


class _Reply:
    """Passes an answer on to the client, but for what Serve says in place of the application."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refusal: Message | None = None
        self._is_stream = False
        self.begun = self.ended = False

    async def send(self, message: Message) -> None:
        """Pass one message on."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=list(message["headers"]))
            kind = headers.get("content-type", "")
            if message["status"] in _REFUSALS and kind.startswith("text/plain"):
                self._refusal = message
                return
            self.begun, self._is_stream = True, kind.startswith("text/event-stream")
        if self._refusal is not None:
            await self._refuse(message)
            return
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def _refuse(self, message: Message) -> None:
        """Answer for Serve where its queue is full; where it has no replica the request is repeated."""
        assert self._refusal is not None
        if self._refusal["status"] == 429 and not self.ended:
            self.ended = True
            found = _WAITING.search(message.get("body", b""))
            full = QueueFullError(int(found[1]) if found else 0)
            await send_refusal(self._send, too_busy(full, RETRY_AFTER))

    async def break_off(self) -> None:
        """End an answer that has begun and cannot go on: a stream by an event, others where they are."""
        event = f"event: error\ndata: {json.dumps(unavailable().body)}\n\n".encode()
        last = event if self._is_stream else b""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
