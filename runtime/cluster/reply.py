"""The answer of a replica on its way to the client."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from controlnext.runtime.serving.access_log import request_facts
from controlnext.runtime.serving.errors import HttpError
from controlnext.runtime.serving.metrics import Outcome

_LATER = 5
"""Seconds after which another replica may be there."""


class ReplicaReply:
    """Passes the messages of a replica on to the client."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._is_stream = self._ended = False
        self.begun = False

    async def pass_on(self, messages: Any, left: asyncio.Task[None]) -> None:
        """Pass on all messages, or cancel them once the client has ``left``."""
        try:
            while True:
                following = asyncio.ensure_future(anext(messages))
                # the facts come after the last part of the answer, with which a client may leave
                watched = {following} if self._ended else {following, left}
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.add_done_callback(_take_note)
                    return
                for message in following.result():
                    await self.send(message)
        except StopAsyncIteration:
            pass
        finally:
            messages.cancel()

    async def send(self, message: Message) -> None:
        """Pass one message on, or take note of the facts."""
        if message["type"] == "facts":
            self._learn(message)
            return
        if message["type"] == "http.response.start":
            self.begun = True
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
        self._ended = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)

    async def break_off(self) -> None:
        """End an answer that has begun and cannot go on: a stream by an event, others where they are."""
        request_facts(self._scope).outcome = Outcome.FAILED
        event = f"event: error\ndata: {json.dumps(unavailable().body)}\n\n".encode()
        last = event if self._is_stream else b""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def _learn(self, message: Message) -> None:
        known, facts = request_facts(self._scope), message["facts"]
        for one in fields(facts):
            setattr(known, one.name, getattr(facts, one.name))
        if message["route"]:
            self._scope["route"] = SimpleNamespace(path=message["route"])


def unavailable() -> HttpError:
    """Return the answer to a request for which there is no replica."""
    return HttpError(
        503,
        "no replica is there to answer, or the one that did has ended; repeat the request",
        kind="server_error",
        code="no_replica",
        headers={"Retry-After": str(_LATER)},
    )


async def body_of(receive: Receive) -> bytes:
    """Return the whole body of a request."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def until_left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _take_note(following: asyncio.Future[Any]) -> None:
    """Keep asyncio from complaining of an error that ends what nobody waits for."""
    if not following.cancelled():
        following.exception()
