"""What stands before Serve's proxies: what it does when replicas die, are busy, or a client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from controlnext.runtime.cluster import proxy
from controlnext.runtime.cluster.proxy import Retries

ROUTE = "/v1/images/generations"
BEGIN = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PART = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
END = {"type": "http.response.body", "body": b"data: 2\n\n"}
DIED: list[Message] = []
"""What Serve sends when a replica died: nothing."""


def of_serve(status: int, text: bytes) -> list[Message]:
    """Return a refusal of Serve's own."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    return [
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": text},
    ]


class Proxy:
    """Serve's application with these outcomes, one after the other."""

    def __init__(self, *outcomes: list[Message]) -> None:
        self._outcomes = list(outcomes)
        self.bodies: list[bytes] = []
        self.models: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        self.models.append(dict(scope["headers"]).get(b"serve_multiplexed_model_id", b""))
        for message in self._outcomes[len(self.bodies) - 1]:
            await send(message)


def before(app: Proxy, *names: str) -> Retries:
    async def ask(_method: str) -> list[list[str]]:
        return [list(names)]

    return Retries(app, SimpleNamespace(ask=ask))  # type: ignore[arg-type]


def answered(app: Retries, **request: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy") as client:
            return await client.request(request.pop("method", "POST"), request.pop("path", ROUTE), **request)

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_PAUSES", (0.0, 0.0))


def test_an_answer_is_passed_on() -> None:
    app = Proxy([BEGIN, PART, END])
    answer = answered(before(app), content=b"{}")
    assert (answer.status_code, answer.content) == (200, b"data: 1\n\ndata: 2\n\n")
    assert app.bodies == [b"{}"]


@pytest.mark.parametrize("outcome", [DIED, of_serve(503, b"no replica"), of_serve(404, b"Path not found")])
def test_a_request_whose_replica_died_is_given_to_another(outcome: list[Message]) -> None:
    app = Proxy(outcome, [BEGIN, END])
    assert answered(before(app), content=b"{}").content == b"data: 2\n\n"
    assert app.bodies == [b"{}", b"{}"]


def test_a_request_that_no_replica_answers_may_be_repeated() -> None:
    answer = answered(before(Proxy(DIED, DIED, DIED)), content=b"{}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(("path", "shaped"), [("/v1/models", True), ("/-/healthz", False)])
def test_refusals_of_serve_have_the_shape_of_the_applications(path: str, shaped: bool) -> None:
    """But for Serve's own paths, whose answers are for those who operate it."""
    app = Proxy(*[of_serve(404, b"Path not found")] * 3)
    answer = answered(before(app), method="GET", path=path)
    assert len(app.bodies) == (3 if shaped else 1)
    assert (answer.status_code, answer.text.startswith("{")) == ((503, True) if shaped else (404, False))


def test_a_body_that_is_too_long_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to the replica whole, and is not repeated."""
    monkeypatch.setattr(proxy, "_MOST_KEPT", 10)

    async def parts() -> Any:
        for _ in range(8):
            yield b"12345"

    for names in ((), ("pair", "toy")):
        app = Proxy([BEGIN, END])
        assert answered(before(app, *names), content=parts()).is_success
        assert app.bodies == [b"12345" * 8]
    assert answered(before(Proxy(DIED)), content=b"12345" * 8).status_code == 503


def test_a_stream_that_breaks_off_says_so() -> None:
    """It is not begun anew: its client has a part of it."""
    app = Proxy([BEGIN, PART])
    first, last = answered(before(app), json={"stream": True}).text.split("\n\n", 1)
    assert first == "data: 1"
    assert last.startswith("event: error\n")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "no_replica"
    assert len(app.bodies) == 1


def test_a_full_queue() -> None:
    told = b"Request dropped due to backpressure (num_queued_requests=9, max_queued_requests=9)."
    answer = answered(before(Proxy(of_serve(429, told))), content=b"{}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert "9 requests wait already" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("given", [b"mine-1", b"abc\xe9", b""])
def test_every_answer_has_an_id(given: bytes) -> None:
    """One that Serve, too, can read: it fails where a header is not text."""
    seen = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"serve")]})
        await send({"type": "http.response.body", "body": b""})

    whole: Any = app
    for one in proxy.middlewares():
        whole = one.cls(whole, *one.args, **one.kwargs)
    answer = answered(whole, method="GET", headers={b"x-request-id": given})
    assert [answer.headers["x-request-id"].encode()] == seen
    assert (seen == [given]) == (given == b"mine-1")


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_refusals_of_the_application_stay(status: int) -> None:
    begin = {**BEGIN, "status": status, "headers": [(b"content-type", b"application/json")]}
    assert answered(before(Proxy([begin, END])), content=b"{}").status_code == status


@pytest.mark.parametrize(
    "request_of",
    [
        lambda model: {"json": {"prompt": "a", "model": model}},
        lambda model: {"files": {"image": b"x"}, "data": {"prompt": "a", "model": model}},
    ],
    ids=["json", "form"],
)
def test_serve_is_told_the_model(request_of: Callable[[str], dict[str, Any]]) -> None:
    """Where several are served, and one of this name."""
    for names, model, told in (
        (("toy", "pair"), "pair", b"pair"),
        (("toy", "pair"), "none", b""),
        (("pair",), "pair", b""),
    ):
        app = Proxy([BEGIN, END])
        answered(before(app, *names), **request_of(model))
        assert app.models == [told]


def test_a_client_that_left_is_not_answered_again() -> None:
    outcomes: list[list[Message]] = [DIED, [BEGIN, END]]
    asked = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        """As Serve does, which sends nothing to a client that has left."""
        asked.append(outcomes.pop(0))
        while (await receive())["type"] != "http.disconnect":
            pass

    messages: list[Message] = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(_message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": ROUTE, "headers": []}
    asyncio.run(before(app)(scope, receive, send))  # type: ignore[arg-type]
    assert len(asked) == 1
