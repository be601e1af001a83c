"""Heads and bodies of requests that are too large or too slow end their connection, and nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from controlnext.runtime.serving.connections import HEAD_BYTES, Connection
from controlnext.runtime.serving.gates import BodyLimit
from support.serving import Site, image_call

HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
SOON = 0.2
"""Seconds, in place of those that a head may take."""


@contextmanager
def connection_to(site: Site) -> Iterator[socket.socket]:
    host, port = site.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def status_of(connection: socket.socket) -> int:
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


@pytest.mark.parametrize("many", [True, False], ids=["many-headers", "one-header"])
def test_a_head_that_is_too_large_is_refused(here: Site, many: bool) -> None:
    """It is read until it is too large, not to its end."""
    line = b"X-Some: 1\r\n"
    head = line * (HEAD_BYTES // len(line) + 1) if many else b"X-Some: " + b"a" * HEAD_BYTES
    with connection_to(here) as connection:
        connection.sendall(HEAD + head)
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.load(answer)["error"]["code"]) == (400, "invalid_http")
    with connection_to(here) as connection:
        connection.sendall(HEAD + b"X-Some: " + b"a" * (HEAD_BYTES // 2) + b"\r\n\r\n")
        assert status_of(connection) == 200


@pytest.mark.parametrize("sent", [b"", HEAD], ids=["nothing", "half-a-head"])
def test_a_head_that_does_not_come_ends_the_connection(
    here: Site, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(Connection, "head_seconds", SOON)
    with connection_to(here) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_second_head_that_does_not_come_ends_the_connection(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connection_to(here) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert status_of(connection) == 200
        monkeypatch.setattr(Connection, "head_seconds", SOON)
        connection.sendall(HEAD)
        assert connection.recv(1) == b""


def test_a_request_may_take_longer_than_its_head(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 1.0)
    body = json.dumps(image_call()).encode()

    def slowly() -> Iterator[bytes]:
        yield body[:9]
        time.sleep(1.5)
        yield body[9:]

    headers = {"Content-Type": "application/json"}
    answer = here.http.post("/v1/images/generations", content=slowly(), headers=headers)
    assert answer.status_code == 200, answer.text


def test_a_request_for_another_protocol_is_served_without_advice(
    here: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), connection_to(here) as connection:
        connection.sendall(HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert status_of(connection) == 200
    assert "WebSocket" not in caplog.text
    assert "upgrade" not in caplog.text


def test_a_body_with_two_lengths_is_refused_and_its_connection_closed(here: Site) -> None:
    """A proxy and this server could disagree on where the next request begins."""
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer first-key\r\n"
    with connection_to(here) as connection:
        connection.sendall(head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert status_of(connection) == 400
        assert connection.recv(1) == b""


async def _reads(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


@pytest.mark.parametrize(
    ("parts", "between", "status"),
    [(3, 0.0, 200), (3, 0.2, 408), (50, 0.03, 408)],
    ids=["in-time", "a-pause", "too-long"],
)
def test_a_body_has_a_time(parts: int, between: float, status: int) -> None:
    """Neither a pause nor a body that never ends holds a request."""

    async def ask() -> list[Message]:
        given, answers = iter(range(parts)), []

        async def receive() -> Message:
            if next(given) > 0:
                await asyncio.sleep(between)
            return {"type": "http.request", "body": b"x", "more_body": next(left, None) is not None}

        left = iter(range(parts - 1))

        async def send(message: Message) -> None:
            answers.append(message)

        scope = {"type": "http", "headers": [], "method": "POST", "path": "/"}
        await BodyLimit(_reads, most=100, pause=0.1, longest=0.5)(scope, receive, send)
        return answers

    start, *bodies = asyncio.run(ask())
    body = b"".join(message["body"] for message in bodies)
    assert start["status"] == status
    if status == 408:
        assert json.loads(body)["error"]["code"] == "body_too_slow"
        assert (b"connection", b"close") in start["headers"]
    else:
        assert body == b"3"


def test_after_its_body_a_request_has_all_the_time() -> None:
    """The end of the connection, which those that wait for a result watch for, may come at any time."""

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        assert await Request(scope, receive).body() == b"x"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.2)
        await PlainTextResponse("done")(scope, receive, send)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(BodyLimit(waits, most=100, pause=0.01, longest=0.02))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post("/", content=b"x")

    assert asyncio.run(ask()).text == "done"
