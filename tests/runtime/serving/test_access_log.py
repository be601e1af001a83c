"""The log line of a request: its fields, its outcome, and what is never in it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest

from controlnext.runtime.serving.access_log import AccessLog, Message, Receive, Scope, Send, request_facts
from controlnext.runtime.serving.metrics import Metrics, Outcome

START = {"type": "http.response.start", "status": 200, "headers": [(b"X-Request-ID", b"id-1")]}
LAST = {"type": "http.response.body", "body": b"done"}
FIRST_PART = {**LAST, "more_body": True}
DISCONNECT = {"type": "http.disconnect"}


class Route:
    path = "/v1/images/generations"


def call(
    application: Any,
    caplog: pytest.LogCaptureFixture,
    metrics: Metrics | None = None,
    prompts: bool = False,
    route: Any = Route,
    cancels_left: bool = False,
) -> dict[str, Any]:
    """Call ``application`` once and return the fields of the log line; an error that it raises is caught."""
    log = AccessLog(application, metrics or Metrics(), prompts=prompts, cancels_left=cancels_left)
    scope = {"type": "http", "method": "POST", "path": "/v1/images/\nforged", "route": route}

    async def receive() -> Message:
        return DISCONNECT

    async def send(_message: Message) -> None:
        assert log.active == 1

    caplog.set_level(logging.DEBUG, "controlnext.runtime.serving")
    caplog.clear()
    with suppress(ValueError):
        asyncio.run(log(scope, receive, send))
    assert log.active == 0
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    return {**record.request, "line": record.getMessage(), "level": record.levelname}  # type: ignore[attr-defined]


async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
    facts = request_facts(scope)
    facts.model, facts.steps, facts.size, facts.rows = "shapes", 4, "64x48", 2
    facts.prompt = "a secret house"
    await send(START)
    await send(LAST)


def test_the_line_has_the_facts_and_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    fields = call(answer, caplog, metrics)
    line, seconds = fields.pop("line"), fields.pop("seconds")
    assert 0 <= seconds < 10
    assert fields == {
        "method": "POST",
        "route": "/v1/images/generations",
        "status": 200,
        "model": "shapes",
        "steps": 4,
        "size": "64x48",
        "rows": 2,
        "outcome": "ok",
        "request_id": "id-1",
        "level": "INFO",
    }
    assert line.startswith("POST /v1/images/generations 200 seconds=")
    assert line.endswith(" model=shapes steps=4 size=64x48 rows=2 outcome=ok request_id=id-1")
    labels = {"route": Route.path, "model": "shapes", "outcome": "ok"}
    assert metrics.registry.get_sample_value("controlnext_requests_total", labels) == 1


def test_the_prompt_is_logged_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    fields = call(answer, caplog, prompts=True)
    assert fields["prompt"] == "a secret house"
    assert 'prompt="a secret house"' in fields["line"]


async def leaves_before_the_answer(_scope: Scope, receive: Receive, _send: Send) -> None:
    await receive()


async def leaves_within_the_answer(_scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(FIRST_PART)
    await receive()
    await send(LAST)


async def leaves_after_the_answer(_scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(LAST)
    await receive()


async def is_cancelled(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise asyncio.CancelledError


async def is_cancelled_within_the_answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send(START)
    raise asyncio.CancelledError


async def fails(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise ValueError("a bug")


async def fails_within_a_stream(scope: Scope, _receive: Receive, send: Send) -> None:
    await send(START)
    request_facts(scope).outcome = Outcome.FAILED
    await send(LAST)


async def refuses(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({**START, "status": 429})
    await send(LAST)


@pytest.mark.parametrize(
    ("application", "status", "outcome"),
    [
        (leaves_before_the_answer, 499, "cancelled"),
        (leaves_within_the_answer, 200, "cancelled"),
        (leaves_after_the_answer, 200, "ok"),
        (is_cancelled, 503, "cancelled"),
        (is_cancelled_within_the_answer, 200, "cancelled"),
        (fails, 500, "failed"),
        (fails_within_a_stream, 200, "failed"),
        (refuses, 429, "refused"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_how_requests_end(
    caplog: pytest.LogCaptureFixture, application: Any, status: int, outcome: str
) -> None:
    fields = call(application, caplog)
    assert (fields["status"], fields["outcome"]) == (status, outcome)


def test_clients_that_left_are_cancelled_by_the_proxy(caplog: pytest.LogCaptureFixture) -> None:
    fields = call(is_cancelled, caplog, cancels_left=True)
    assert (fields["status"], fields["outcome"]) == (499, "cancelled")


def test_a_path_that_no_route_answers_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    fields = call(refuses, caplog, route=None)
    assert fields["route"] == "(none)"
    assert r'path="/v1/images/\nforged"' in fields["line"]


def test_probes_are_logged_as_debugging(caplog: pytest.LogCaptureFixture) -> None:
    class Probe:
        path = "/health/ready"

    assert call(answer, caplog, route=Probe)["level"] == "DEBUG"
    assert call(refuses, caplog, route=Probe)["level"] == "INFO"
