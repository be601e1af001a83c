"""One HTTP request as data: it leaves a front's connection and is answered in a replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from controlnext.runtime.serving.access_log import request_facts
from controlnext.runtime.serving.request_ids import HEADER, request_id

_CARRIED = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
)


def carried(scope: Scope) -> dict[str, Any]:
    """Return what a replica needs of a request's scope; its id goes with it."""
    own = HEADER.encode()
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != own]
    headers.append((own, request_id(scope).encode()))
    return {**{name: scope[name] for name in _CARRIED if name in scope}, "headers": headers}


async def answer(app: ASGIApp, scope: MutableMapping[str, Any], body: bytes) -> AsyncGenerator[list[Message]]:
    """Yield the messages of ``app``'s answer as they come, and at the end one of the type ``"facts"``.

    Who closes the iterator has left: the request is cancelled as if its connection were closed.
    """
    left = asyncio.Event()
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, sent.put)
        finally:
            sent.put_nowait(None)

    work = asyncio.create_task(run())
    try:
        while (messages := await _ready(sent))[-1] is not None:
            yield messages
        if messages[:-1]:
            yield messages[:-1]
        await work
        yield [_facts(scope)]
    finally:
        left.set()
        await asyncio.wait([work])


async def _ready(queue: asyncio.Queue[Message | None]) -> list[Any]:
    """Return all that is in the queue, at least one."""
    found = [await queue.get()]
    while not queue.empty():
        found.append(queue.get_nowait())
    return found


def _facts(scope: Scope) -> Message:
    route = getattr(scope.get("route"), "path", "")
    return {"type": "facts", "facts": request_facts(scope), "route": route}
