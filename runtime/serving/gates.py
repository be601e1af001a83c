"""Middlewares before the routes: the check of the key, the limit of the body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import suppress

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlnext.runtime.serving.errors import HttpError
from controlnext.runtime.serving.request_ids import send_refusal

KEYED = ("/v1/", "/metrics")
"""Beginnings of the paths that need a key: probes and the page have none to send."""
_PATIENCE = 5.0
"""Seconds for a client to send the rest of a body that is refused: most read no answer before that."""


class Keys:
    """An ASGI middleware that lets requests pass with one of ``keys``; without keys it lets all pass."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] == "http" and self._keys and scope["path"].startswith(KEYED):
            kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not self._known(key.strip().encode()):
                await send_refusal(send, _unauthorized(bool(key)))
                return
        await self._app(scope, receive, send)

    def _known(self, given: bytes) -> bool:
        """Return whether a key is known; the time tells neither which nor how much of it is right."""
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


class BodyLimit:
    """An ASGI middleware that refuses bodies of more than ``most`` bytes while they are read, whether their
    length was told before or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            await self._refuse(receive, send)
            return
        read, more, started = 0, True, False

        async def counted() -> Message:
            nonlocal read, more
            message = await receive()
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
            if read > self._most:
                raise _TooLargeError
            return message

        async def tell(message: Message) -> None:
            nonlocal started
            # what the application makes of half a body is no answer
            if started or read <= self._most:
                started = True
                await send(message)

        with suppress(_TooLargeError):
            await self._app(scope, counted, tell)
        if read > self._most and not started:
            await self._refuse(receive, send, more)

    async def _refuse(self, receive: Receive, send: Send, more: bool = True) -> None:
        refusal = HttpError(
            413,
            f"the body has more than {self._most} bytes, the most that this server takes; scale images down",
            code="body_too_large",
            headers={"Connection": "close"},
        )
        await send_refusal(send, refusal, ends=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while more:
                    more = (await receive()).get("more_body", False)
        await send({"type": "http.response.body", "body": b""})


class _TooLargeError(HTTPException):
    """Not to be taken for a fault of the body's content, as FastAPI does with all other exceptions."""

    def __init__(self) -> None:
        super().__init__(413)


def _unauthorized(given: bool) -> HttpError:
    problem = "the key is not known to this server" if given else "a key is needed"
    return HttpError(
        401,
        f"{problem}; send one of its keys as Authorization: Bearer KEY",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
