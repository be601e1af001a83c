"""Clients that leave, for whom nothing is denoised any more, and clients for whom there is no place."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from controlnext.runtime import Pipeline
from controlnext.runtime.denoise import Denoising, Step
from controlnext.runtime.serving.service import Pace
from controlnext.runtime.serving.settings import ServerSettings
from support.recipe import drawing
from support.serving import Site, file_of, image_call, open_pipeline, serve, text_of, until

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROL = drawing(1, 24, 16)


class Steps:
    """Holds every step of every request up until it is let through."""

    def __init__(self) -> None:
        self.taken, self.begun = 0, 0
        self._let = threading.Semaphore(0)
        self._open = True

    def load(self, path: Path) -> Pipeline:
        pipe = open_pipeline(path)
        start = pipe.start

        def held(request: Any) -> Denoising:
            run = start(request)
            advance = run.advance

            def step(predictions: Any) -> Step:
                self.begun += 1
                if not self._open:
                    assert self._let.acquire(timeout=20)
                self.taken += 1
                return advance(predictions)

            run.advance = step  # type: ignore[method-assign]
            return run

        pipe.start = held  # type: ignore[method-assign]
        return pipe

    def hold(self) -> None:
        self.taken, self.begun, self._open = 0, 0, False

    def let(self, count: int = 1) -> None:
        self._let.release(count)

    def open(self) -> None:
        self._open = True
        self._let.release(1000)
        self._let = threading.Semaphore(0)


@pytest.fixture(scope="module")
def steps() -> Steps:
    return Steps()


@pytest.fixture(scope="module")
def site(toy: Path, steps: Steps) -> Iterator[Site]:
    with serve([toy], ServerSettings(max_rows=2, max_waiting=3), steps.load) as site:
        yield site


@pytest.fixture(autouse=True)
def _held(site: Site, steps: Steps) -> Iterator[None]:
    """Hold all steps within a test, and let nothing run on after it."""
    steps.hold()
    yield
    steps.open()
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
    site: Site, steps: Steps, route: str, stream: bool
) -> None:
    fields = image_call(num_inference_steps=20, stream=stream, control_image=None)
    given: dict[str, Any] = {"data": fields, "files": {"image": file_of(CONTROL)}}
    if route == ROUTE:
        given = {"json": {**fields, "control_image": text_of(CONTROL)}}
    steps.let(2)
    with asked(site, route, **given) as connection:
        until(lambda: steps.begun == 3)
        if stream:
            assert connection.getresponse().status == 200
    until(lambda: not site.models.users)
    steps.let(20)
    until(lambda: 'controlnext_requests_running{model="toy"} 0.0' in site.http.get("/metrics").text)
    assert steps.begun == 3


def test_a_client_that_leaves_the_queue(site: Site, steps: Steps) -> None:
    call = image_call()
    with asked(site, ROUTE, json=call) as first, asked(site, ROUTE, json=call) as second:
        until(lambda: site.models.users == 2)
        with asked(site, ROUTE, json=call):
            until(lambda: waiting(site, 1))
        until(lambda: waiting(site, 0))
        steps.open()
        assert [connection.getresponse().status for connection in (first, second)] == [200, 200]
    count = f'controlnext_requests_total{{model="toy",outcome="cancelled",route="{ROUTE}"}}'
    assert count in site.http.get("/metrics").text


def test_a_full_queue(site: Site, steps: Steps) -> None:
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
        steps.open()
        answers = [json.load(connection.getresponse()) for connection in served]
    assert [answer["seed"] for answer in answers] == [*range(5)]
    assert waiting(site, 0)


def test_a_stream_that_waits_says_so(site: Site, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnext.runtime.serving.streams._PAUSE", 0.02)
    with site.http.stream("POST", ROUTE, json=image_call(stream=True, n=2)) as response:
        lines = response.iter_lines()
        assert next(lines) == ": waiting"
        steps.open()
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
