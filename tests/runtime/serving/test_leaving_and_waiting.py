"""Clients that leave, for whom nothing is denoised any more, and clients for whom there is no place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.service import Pace
from controlnext.runtime.serving.settings import ServerSettings
from support.gate import Gate, until
from support.recipe import drawing
from support.serving import Site, file_of, image_call, open_pipeline, serve, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROL = drawing(1, 24, 16)


@pytest.fixture(scope="module")
def pipes() -> list[Pipeline]:
    """Return the pipelines that the server has opened; the last one is in use."""
    return []


@pytest.fixture(scope="module")
def site(toy: Path, pipes: list[Pipeline]) -> Iterator[Site]:
    def load(path: Path) -> Pipeline:
        pipes.append(open_pipeline(path))
        return pipes[-1]

    with serve([toy], ServerSettings(max_rows=2, max_waiting=3), load) as site:
        yield site


@pytest.fixture
def gate(site: Site, pipes: list[Pipeline], monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Hold the denoiser up within a test, and let nothing run on after it."""
    gate = Gate(pipes[-1].bundle.engine(pipes[-1].family.denoiser), monkeypatch)
    yield gate
    gate.open()
    until(lambda: not site.models.users)


@contextmanager
def asked(site: Site, route: str, **given: Any) -> Iterator[HTTPConnection]:
    """Make a request, and yield its connection without waiting for the answer; leave at the end."""
    request = httpx.Request("POST", site.address + route, **given)
    connection = HTTPConnection(request.url.host, request.url.port, timeout=20)
    connection.request("POST", route, request.read(), dict(request.headers))
    yield connection
    connection.close()


def waiting(site: Site, count: int) -> bool:
    return f'controlnext_requests_waiting{{model="toy"}} {count:.1f}' in site.http.get("/metrics").text


@pytest.mark.parametrize("route", [ROUTE, EDITS])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_cancelled_within_a_step(
    site: Site, gate: Gate, route: str, stream: bool
) -> None:
    fields = image_call(num_inference_steps=20, stream=stream, control_image=None)
    given: dict[str, Any] = {"data": fields, "files": {"image": file_of(CONTROL)}}
    if route == ROUTE:
        given = {"json": {**fields, "control_image": text_of(CONTROL)}}
    with asked(site, route, **given) as connection:
        gate.wait()
        gate.let(2)
        if stream:
            assert connection.getresponse().status == 200
    until(lambda: not site.models.users)
    gate.open()
    until(lambda: 'controlnext_requests_running{model="toy"} 0.0' in site.http.get("/metrics").text)
    assert len(gate.runs) == 3


def test_a_client_that_leaves_the_queue(site: Site, gate: Gate) -> None:
    call = image_call()
    with asked(site, ROUTE, json=call) as first, asked(site, ROUTE, json=call) as second:
        until(lambda: site.models.users == 2)
        with asked(site, ROUTE, json=call):
            until(lambda: waiting(site, 1))
        until(lambda: waiting(site, 0))
        gate.open()
        assert [connection.getresponse().status for connection in (first, second)] == [200, 200]
    count = f'controlnext_requests_total{{model="toy",outcome="cancelled",route="{ROUTE}"}}'
    assert count in site.http.get("/metrics").text


def test_a_full_queue(site: Site, gate: Gate) -> None:
    client = site.openai()
    with ExitStack() as stack:
        served = [stack.enter_context(asked(site, ROUTE, json=image_call(seed=seed))) for seed in range(5)]
        until(lambda: waiting(site, 3))
        with pytest.raises(openai.RateLimitError, match="3 requests wait already") as caught:
            client.images.generate(prompt="a", extra_body=image_call())
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "queue_full"
        with pytest.raises(openai.RateLimitError):
            client.images.generate(prompt="a", stream=True, extra_body=image_call())
        gate.open()
        answers = [json.load(connection.getresponse()) for connection in served]
    assert [answer["seed"] for answer in answers] == [*range(5)]
    assert waiting(site, 0)


def test_where_nothing_may_wait_an_idle_server_answers(toy: Path) -> None:
    with serve([toy], ServerSettings(max_waiting=0)) as site:
        assert site.http.post(ROUTE, json=image_call()).status_code == 200


def test_a_stream_that_waits_says_so(site: Site, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnext.runtime.serving.streams._PAUSE", 0.02)
    with site.http.stream("POST", ROUTE, json=image_call(stream=True, n=2)) as response:
        lines = response.iter_lines()
        assert next(lines) == ": waiting"
        gate.open()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["image_generation.completed"] * 2


def test_what_waits_tells_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        waiting = 1

    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace()
    assert pace.seconds(10) == 1
    for now in (10.0, 12.0, 14.0):  # noqa: B007
        pace.done(Waiting())  # type: ignore[arg-type]
    assert pace.seconds(10) == 20
    Waiting.waiting = 0
    pace.done(Waiting())  # type: ignore[arg-type]
    now = 1000.0
    pace.done(Waiting())  # type: ignore[arg-type]
    assert pace.seconds(10) <= 20
