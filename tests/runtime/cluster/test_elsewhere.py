"""Requests that all replicas get: whose answer a client sees."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from controlnext.runtime.cluster.elsewhere import Elsewhere
from controlnext.runtime.cluster.exchange import WholeAnswer
from controlnext.runtime.cluster.merged_metrics import merged
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.videos import CLIPS
from support.asgi import OWN, own


def answer(status: int, body: bytes = b"") -> WholeAnswer:
    return WholeAnswer(status, [(b"content-type", b"text/plain")], body or b"%d" % status)


def answered(path: str, answers: list[WholeAnswer] | None, method: str = "GET") -> httpx.Response:
    async def ask_all(asked: str, scope: dict[str, Any]) -> list[WholeAnswer] | None:
        assert (asked, scope["path"], scope["method"]) == ("answer", path, method)
        return answers

    async def ask() -> httpx.Response:
        app = Elsewhere(own, SimpleNamespace(ask=ask_all))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/v1/models", "/v1/images/generations", "/"])
def test_what_one_replica_knows_it_answers(path: str) -> None:
    assert answered(path, []).content == OWN


@pytest.mark.parametrize("path", ["/v1/videos/video_1", "/v1/videos/video_1/content"])
def test_the_replica_that_has_a_clip_answers(path: str) -> None:
    for method in ("GET", "DELETE"):
        assert answered(path, [answer(404), answer(206), answer(404)], method).content == b"206"
    assert answered(path, [answer(401), answer(401)]).status_code == 401
    assert answered(path, [answer(404)]).status_code == 404


def test_the_list_of_clips_is_made_of_those_of_all() -> None:
    asked: list[dict[str, Any]] = []

    async def ask_all(what: str, *arguments: Any) -> list[Any]:
        asked.extend(arguments)
        return [["a"], ["b", "c"]] if what == "clips" else [answer(503), answer(200)]

    async def ask() -> int:
        app = Elsewhere(own, SimpleNamespace(ask=ask_all))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy") as client:
            created = await client.post("/v1/videos")
            assert created.content == OWN
            return (await client.get("/v1/videos")).status_code

    assert asyncio.run(ask()) == 200
    assert [scope["state"] for scope in asked] == [{CLIPS: ["a", "b", "c"]}]


@pytest.mark.parametrize("probe", ["ready", "live"])
def test_one_replica_is_enough_for_a_probe(probe: str) -> None:
    assert answered(f"/health/{probe}", [answer(503), answer(200)]).status_code == 200
    assert answered(f"/health/{probe}", [answer(503)]).status_code == 503


@pytest.mark.parametrize("path", ["/v1/videos/video_1", "/metrics", "/health/ready"])
def test_without_a_replica(path: str) -> None:
    found = answered(path, [])
    assert (found.status_code, found.json()["error"]["code"]) == (503, "no_replica")
    assert int(found.headers["retry-after"]) > 0


def test_a_cluster_without_the_application_answers_itself() -> None:
    assert answered("/metrics", None).content == OWN


def test_the_metrics_of_all_that_answer_add_up() -> None:
    texts = [Metrics(), Metrics()]
    for metrics in texts:
        metrics.rows.labels("toy").observe(4)
    found = answered("/metrics", [*(answer(200, metrics.text()) for metrics in texts), answer(503)])
    assert 'controlnext_run_rows_sum{model="toy"} 8.0' in found.text
    assert answered("/metrics", [answer(401), answer(401)]).status_code == 401


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
