"""An id for each request, by which its answer and the log are found."""

from __future__ import annotations

import json
import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlnext.runtime.serving.errors import HttpError, unexpected

logger = logging.getLogger(__name__)

HEADER = "x-request-id"
_KEY = "controlnext.request_id"
_SANE = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def request_id(scope: Scope) -> str:
    """Return the id of the request of this scope."""
    return scope.get(_KEY, "")


class RequestIds:
    """An ASGI middleware that gives every answer a request id: the client's own if it is sane.

    An error that nobody foresaw is logged with it, and answered without its reason.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        own = scope[_KEY] = given if _SANE.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[HEADER] = own
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except Exception:
            logger.exception("request %s failed", own)
            if not started:
                await send_refusal(tell, unexpected(own))


async def send_refusal(send: Send, refusal: HttpError, *, ends: bool = True) -> None:
    """Send an answer that is an error; not ``ends``: its last part is left out."""
    body = json.dumps(refusal.body).encode()
    headers = {**refusal.headers, "content-type": "application/json", "content-length": str(len(body))}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": not ends})
