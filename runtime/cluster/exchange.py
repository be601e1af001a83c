"""A request that all replicas get, as data, and the answer of one of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope, Send

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


@dataclass(frozen=True)
class WholeAnswer:
    """The answer to a request, whole."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    async def send(self, send: Send) -> None:
        """Send it to the client."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def carried(scope: Scope) -> dict[str, Any]:
    """Return what a replica needs of a request's scope."""
    return {**{name: scope[name] for name in _CARRIED if name in scope}, "headers": list(scope["headers"])}


async def answer_of(app: ASGIApp, scope: Scope) -> WholeAnswer:
    """Return the answer of an application to a request that :func:`carried` made data, without a body."""
    sent: list[Message] = []
    unread: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not unread:
            await asyncio.Future()
        return unread.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    begin, *parts = sent
    headers = [(bytes(name), bytes(value)) for name, value in begin["headers"]]
    return WholeAnswer(begin["status"], headers, b"".join(part.get("body", b"") for part in parts))
