"""Middlewares before the routes: the name of the route, the check of the key, the limit of the body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlnext.runtime.serving.errors import HttpError, shortened
from controlnext.runtime.serving.request_ids import send_refusal

KEYED = ("/v1/", "/metrics")
"""Beginnings of the paths that need a key: probes and the page have none to send."""

BODY_PAUSE, BODY_SECONDS = 30.0, 300.0
"""Seconds for the next part of a body, and for the whole of it."""
_MOST_DIGITS = 20
"""Digits of the largest length that a server takes for one."""


class Routes:
    """An ASGI middleware that tells the log which of ``routes`` a request is for, should a gate refuse it."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app, self._routes = app, [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        path = scope.get("path", "")
        if found := next((route for route in self._routes if route.path_regex.match(path)), None):
            scope["route"] = found
        await self._app(scope, receive, send)


class Keys:
    """An ASGI middleware that lets requests pass with one of ``keys``.

    Without keys it lets all pass but those that the page of another site makes a browser send: what listens
    on this machine alone is in their reach too. ``local``: only this machine reaches the server. Its browsers
    then know it by an address or as localhost; a name that somebody has point here is refused.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], local: bool) -> None:
        self._app = app
        self._keys, self._local = [key.encode() for key in keys], local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] == "http" and scope["path"].startswith(KEYED):
            refusal = self._refusal(Headers(scope=scope))
            if refusal is not None:
                await send_refusal(send, refusal)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> HttpError | None:
        if self._keys:
            kind, _, key = headers.get("authorization", "").partition(" ")
            known = kind.lower() == "bearer" and self._known(key.strip().encode())
            return None if known else _unauthorized(bool(key))
        host = headers.get("host", "")
        if headers.get("sec-fetch-site") == "cross-site" or not self._is_own_page(
            headers.get("origin"), host
        ):
            return _forbidden("the page of another site made this request", "use the server's own page")
        if self._local and not _is_own_name(host):
            return _forbidden(f"Host is {shortened(host)}", "use 127.0.0.1 or localhost")
        return None

    def _is_own_page(self, origin: str | None, host: str) -> bool:
        """Return whether no page, that of this server or another one of this machine makes a request."""
        if origin is None:
            return True
        page = origin.partition("://")[2]
        return page == host or (self._local and _is_own_name(page))

    def _known(self, given: bytes) -> bool:
        """Return whether a key is known; the time tells neither which nor how much of it is right."""
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


class BodyLimit:
    """An ASGI middleware that refuses bodies of more than ``most`` bytes while they are read, whether their
    length was told before or not, and those that stand still for ``pause`` seconds, or take longer than
    ``longest``. The server reads the rest of such a body and drops it."""

    def __init__(
        self, app: ASGIApp, most: int, pause: float = BODY_PAUSE, longest: float = BODY_SECONDS
    ) -> None:
        self._app, self._most, self._pause, self._longest = app, most, pause, longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 413 or 408."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            # a proxy before this server may believe the other one, and take the rest for another request
            await send_refusal(send, _two_lengths())
            return
        length = headers.get("content-length", "")
        # longer numbers are not even read
        if length.isdecimal() and (len(length) > _MOST_DIGITS or int(length) > self._most):
            await send_refusal(send, self._too_large())
            return
        try:
            await self._app(scope, self._limited(receive), send)
        except _BodyError as error:
            await send_refusal(send, error.refusal)

    def _limited(self, receive: Receive) -> Receive:
        """Return a ``receive`` that raises :class:`_BodyError` for a body that is not accepted."""
        clock = asyncio.get_running_loop().time
        end, read, whole = clock() + self._longest, 0, False

        async def limited() -> Message:
            nonlocal read, whole
            try:
                # after the body comes the end of the connection, at any time
                async with asyncio.timeout_at(None if whole else min(clock() + self._pause, end)):
                    message = await receive()
            except TimeoutError as error:
                raise _BodyError(self._too_slow()) from error
            read += len(message.get("body", b""))
            if read > self._most:
                raise _BodyError(self._too_large())
            whole = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> HttpError:
        return HttpError(
            413,
            f"the body has more than {self._most} bytes, the most that this server takes; scale images down",
            code="body_too_large",
        )

    def _too_slow(self) -> HttpError:
        return HttpError(
            408,
            f"the body did not come within {self._longest:g} s, with no pause above {self._pause:g} s;"
            " send the request again",
            code="body_too_slow",
            headers={"Connection": "close"},
        )


class _BodyError(Exception):
    """A body that is too large or too slow was read so far; ends what reads it."""

    def __init__(self, refusal: HttpError) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def _is_own_name(host: str) -> bool:
    """Return whether a host, with or without port, is an address or localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _two_lengths() -> HttpError:
    return HttpError(
        400,
        "the body has both Content-Length and Transfer-Encoding; send one of them",
        code="invalid_body",
        headers={"Connection": "close"},
    )


def _forbidden(problem: str, remedy: str) -> HttpError:
    message = f"{problem}, which a server without keys refuses; {remedy}, or give the server keys"
    return HttpError(403, message, kind="permission_error", code="cross_site")


def _unauthorized(given: bool) -> HttpError:
    problem = "the key is not known to this server" if given else "a key is needed"
    return HttpError(
        401,
        f"{problem}; send one of its keys as Authorization: Bearer KEY",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
