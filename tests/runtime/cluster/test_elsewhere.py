"""The front gives requests to replicas: what it does when they die, are busy, or their client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from starlette.responses import JSONResponse
from starlette.types import Message

from controlnext.runtime.cluster.elsewhere import Elsewhere
from controlnext.runtime.cluster.merged_metrics import merged
from controlnext.runtime.serving.access_log import RequestFacts
from controlnext.runtime.serving.metrics import Metrics

ROUTE = "/v1/images/generations"
BEGIN = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PART = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
END = {"type": "http.response.body", "body": b"data: 2\n\n"}
FACTS = {"type": "facts", "facts": RequestFacts(model="toy"), "route": ROUTE}
Outcome = list[Message | Exception]


class Replies:
    """What a replica sends, one message after the other."""

    def __init__(self, outcome: Outcome, in_parts: bool) -> None:
        self._left, self.cancelled, self._in_parts = list(outcome), False, in_parts

    def __await__(self) -> Generator[Any, None, list[Message]]:
        return self._whole().__await__()

    async def _whole(self) -> list[Message]:
        assert not self._in_parts
        return [message for _ in list(self._left) for message in await self._next()]

    def cancel(self) -> None:
        self.cancelled = True

    async def __anext__(self) -> list[Message]:
        assert self._in_parts
        return await self._next()

    async def _next(self) -> list[Message]:
        if not self._left:
            raise StopAsyncIteration
        following = self._left.pop(0)
        if following is WAITS:
            await asyncio.sleep(60)
        if isinstance(following, Exception):
            raise following
        return [following]


WAITS: Any = object()


class Handle:
    """A handle of replicas with these outcomes, one after the other, which come in parts or whole."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes, self.asked, self.models = list(outcomes), [], []
        self.replies: list[Replies] = []

    def options(self, **options: Any) -> Any:
        self.models.append(options["multiplexed_model_id"])
        assert options["method_name"] == ("answer" if options["stream"] else "answer_whole")
        self._in_parts = options["stream"]
        return SimpleNamespace(remote=self._answer)

    def _answer(self, scope: dict[str, Any], body: bytes) -> Replies:
        self.asked.append((scope["path"], body))
        self.replies.append(Replies(self._outcomes[len(self.asked) - 1], self._in_parts))
        return self.replies[-1]


async def _own(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def answered(
    handle: Any, path: str = ROUTE, several: bool = False, app: Any = _own, **request: Any
) -> httpx.Response:
    async def ask() -> httpx.Response:
        front = Elsewhere(app, handle, several)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://front") as client:
            return await client.request(request.pop("method", "POST"), path, **request)

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnext.runtime.cluster.elsewhere._PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("body", [b"{}", b'{"stream":true}'])
def test_an_answer_is_passed_on(body: bytes) -> None:
    handle = Handle([BEGIN, PART, END, FACTS])
    answer = answered(handle, content=body)
    assert (answer.status_code, answer.content) == (200, b"data: 1\n\ndata: 2\n\n")
    assert handle.asked == [(ROUTE, body)]


def test_what_needs_no_engine_stays_here() -> None:
    assert answered(Handle(), "/v1/models", method="GET").status_code == 204
    assert answered(Handle(), ROUTE, method="GET").status_code == 204


def test_a_request_whose_replica_died_is_given_to_another() -> None:
    handle = Handle([ActorDiedError()], [BEGIN, END, FACTS])
    assert answered(handle, content=b"{}").content == b"data: 2\n\n"
    assert len(handle.asked) == 2


def test_a_request_that_no_replica_answers_may_be_repeated() -> None:
    answer = answered(Handle([ActorDiedError()], [ActorDiedError()], [ActorDiedError()]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert int(answer.headers["retry-after"]) > 0


def test_a_stream_that_breaks_off_says_so() -> None:
    """It is not begun anew: its client has a part of it."""
    handle = Handle([BEGIN, PART, ActorDiedError()])
    first, last = answered(handle, json={"stream": True}).text.split("\n\n", 1)
    assert first == "data: 1"
    assert last.startswith("event: error\n")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "no_replica"
    assert len(handle.asked) == 1


def test_a_full_queue() -> None:
    answer = answered(Handle([BackPressureError(num_queued_requests=9, max_queued_requests=9)]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert "9 requests wait already" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: {"json": {"prompt": "a", "model": "pair"}},
        lambda: {"files": {"image": b"x"}, "data": {"prompt": "a", "model": "pair"}},
    ],
    ids=["json", "form"],
)
def test_the_replica_that_has_the_model_is_asked_first(request_of: Callable[[], dict[str, Any]]) -> None:
    for several, model in ((True, "pair"), (False, "")):
        handle = Handle([BEGIN, END, FACTS])
        answered(handle, several=several, **request_of())
        assert handle.models == [model]


@pytest.mark.parametrize("body", [b"{}", b'{"stream": true}'])
def test_a_client_that_leaves_is_told_to_the_replica(body: bytes) -> None:
    handle = Handle([BEGIN, PART, WAITS])

    async def leave() -> None:
        left = asyncio.Event()
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            if b"stream" in body:
                await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                left.set()

        scope = {"type": "http", "method": "POST", "path": ROUTE, "headers": []}
        async with asyncio.timeout(10):
            await Elsewhere(_own, handle, False)(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(leave())
    assert handle.replies[0].cancelled


def broadcasting(*results: Any) -> Any:
    """Return a handle whose replicas answer so."""

    async def results_async(**_options: Any) -> list[Any]:
        return list(results)

    return SimpleNamespace(broadcast=lambda *_: SimpleNamespace(results_async=results_async))


def test_the_replica_that_has_a_clip_answers() -> None:
    def reply(status: int) -> list[Message]:
        begin = {"type": "http.response.start", "status": status, "headers": []}
        return [begin, {"type": "http.response.body", "body": b"%d" % status}, FACTS]

    handle = broadcasting(reply(404), ActorDiedError(), reply(200))
    assert answered(handle, "/v1/videos/video_1", method="GET").content == b"200"
    assert answered(broadcasting(reply(404)), "/v1/videos/video_1", method="DELETE").status_code == 404
    assert answered(broadcasting(), "/v1/videos/video_1/content", method="GET").status_code == 503


def test_the_clips_of_all_replicas_are_listed() -> None:
    async def tell(scope: Any, _receive: Any, send: Any) -> None:
        await JSONResponse(scope["state"]["clips"])(scope, _receive, send)

    handle = broadcasting([1, 2], ActorDiedError(), [3])
    assert answered(handle, "/v1/videos", method="GET", app=tell).json() == [1, 2, 3]
    assert answered(broadcasting(), "/v1/videos", method="GET", app=tell).status_code == 503


def test_it_is_ready_with_a_replica() -> None:
    assert answered(broadcasting(), "/health/ready", method="GET").status_code == 503
    assert answered(broadcasting(b"x"), "/health/ready", method="GET").json() == {"status": "ready"}


def test_the_metrics_of_several_processes_add_up() -> None:
    both = [Metrics(), Metrics()]
    for number, metrics in enumerate(both, start=1):
        metrics.watch("toy", SimpleNamespace(waiting=number, running=0, memory=5))
        metrics.rows.labels("toy").observe(4 * number)
    text = merged([metrics.text() for metrics in both]).decode()
    assert 'controlnext_requests_waiting{model="toy"} 3.0' in text
    assert 'controlnext_engine_memory_bytes{model="toy"} 10.0' in text
    assert 'controlnext_run_rows_bucket{le="4.0",model="toy"} 1.0' in text
    assert 'controlnext_run_rows_sum{model="toy"} 12.0' in text
    assert text.count("# TYPE controlnext_run_rows histogram") == 1
