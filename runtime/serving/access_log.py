"""One log line a request, and its count in the metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from controlnext.runtime.serving.errors import refusal_of, stopped
from controlnext.runtime.serving.metrics import Metrics, Outcome
from controlnext.runtime.serving.request_ids import send_refusal
from controlnext.secrets import HIDDEN

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_KEY = "controlnext.request_facts"
_PROBES = ("/health/", "/metrics")
UNKNOWN_ROUTE = "(none)"
"""Route of the requests that no route answers: their paths are of their own choice."""
_LONGEST_PATH = 200
LEFT = 499
"""Status in the log of a request whose client left before the answer began."""


@dataclass
class RequestFacts:
    """The facts of a request that its route knows; what does not apply stays None.

    ``model``: name of a bundle that is served. ``size``: of the result, as ``"512x512"``. ``rows``: its rows
    in a run of the denoiser. ``outcome``: if the status does not tell, as with an error within a stream.
    """

    model: str | None = None
    steps: int | None = None
    size: str | None = None
    images: int | None = None
    rows: int | None = None
    prompt: str | None = None
    outcome: Outcome | None = None


def request_facts(scope: Scope) -> RequestFacts:
    """Return the facts of the request of this scope, to be filled in."""
    facts: RequestFacts = scope.setdefault(_KEY, RequestFacts())
    return facts


class AccessLog:
    """An ASGI middleware that logs and counts each request when its response has ended.

    The record's message is for people; the same facts are in its attribute ``request``. Prompts are left out
    unless ``prompts`` is set. Requests of ``/health`` and ``/metrics``, which come by the clock, are logged
    at level DEBUG, and those whose status is one of ``unlogged`` neither logged nor counted. A request that
    is cancelled is answered with 503, as the server stops; with ``cancels_left`` not at all: what calls the
    application cancels the requests of clients that left. The server's ``keys`` are in no line, wherever in
    its address a client puts one. ``active`` is the number of requests at the moment.
    """

    def __init__(
        self,
        application: Application,
        metrics: Metrics,
        *,
        prompts: bool = False,
        unlogged: Collection[int] = (),
        cancels_left: bool = False,
        keys: Sequence[str] = (),
    ) -> None:
        self._application, self._metrics, self._prompts = application, metrics, prompts
        self._unlogged, self._cancels_left, self._keys = unlogged, cancels_left, keys
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        watch, facts = _Watch(receive, send), request_facts(scope)
        self.active += 1
        try:
            await self._application(scope, watch.receive, watch.send)
        except asyncio.CancelledError:
            # its log needs no traceback of that
            watch.left = True
            if not watch.status and not self._cancels_left:
                await _answer_stopped(watch.send)
        except Exception:
            facts.outcome = Outcome.FAILED
            raise
        finally:
            self.active -= 1
            self._log(scope, facts, watch)

    def _log(self, scope: Scope, facts: RequestFacts, watch: _Watch) -> None:
        status = watch.status or (LEFT if watch.left else 500)
        if status in self._unlogged:
            return
        outcome = Outcome.CANCELLED if watch.left else facts.outcome or Outcome.of(status)
        route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        self._metrics.count(route, facts.model or "", outcome)
        known = {name: value for name, value in asdict(facts).items() if value is not None}
        if not self._prompts:
            known.pop("prompt", None)
        if route == UNKNOWN_ROUTE:
            known["path"] = self._without_keys(scope["path"])[:_LONGEST_PATH]
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(watch.seconds, 4),
            **known,
            "outcome": outcome.value,
            "request_id": watch.request_id,
        }
        level = logging.DEBUG if route.startswith(_PROBES) and outcome is Outcome.OK else logging.INFO
        logger.log(level, "%s", _line(fields), extra={"request": fields})

    def _without_keys(self, path: str) -> str:
        for key in self._keys:
            path = path.replace(key, HIDDEN)
        return path


@dataclass
class _Watch:
    """Watches the messages of one request."""

    _receive: Receive
    _send: Send
    status: int = 0
    request_id: str = ""
    left: bool = False
    _ended: bool = False
    _started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._ended:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = {bytes(name).lower(): value for name, value in message.get("headers", ())}
            self.request_id = bytes(headers.get(b"x-request-id", b"")).decode("latin-1")
        # before it is sent: the client may leave as soon as it has the last part
        self._ended = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)


async def _answer_stopped(send: Send) -> None:
    refusal = refusal_of(stopped())
    refusal.headers = {**refusal.headers, "Connection": "close"}
    await send_refusal(send, refusal)


def _line(fields: MutableMapping[str, Any]) -> str:
    """Return a line for people: method, route and status, then the others as ``name=value``."""
    first = ("method", "route", "status")
    rest = [f"{name}={_value(value)}" for name, value in fields.items() if name not in first]
    return " ".join([*(str(fields[name]) for name in first), *rest])


def _value(value: Any) -> str:
    """Return ``value``, in quotes where it has spaces or anything else that could be taken for a field."""
    text = str(value)
    plain = all(letter.isalnum() or letter in "-_.:/" for letter in text)
    return text if plain else json.dumps(text)
