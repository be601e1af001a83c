"""An application that a middleware stands before."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

OWN = b"own"


async def own(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer with :data:`OWN`."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": OWN})
