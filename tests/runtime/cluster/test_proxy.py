"""What Serve's proxies answer when the front dies."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from starlette.types import Receive, Scope, Send

from controlnext.runtime.cluster.proxy import Answered
from controlnext.runtime.ray_cluster import PROXY_CALLBACK


async def _whole(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer nothing, as a proxy does whose front has died."""


async def _broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise RuntimeError("the front has died")


async def _half(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("the front has died")


def answered(app: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Answered(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.get("/v1/models")

    return asyncio.run(ask())


@pytest.mark.parametrize("app", [_silent, _broken])
def test_a_front_that_died_is_told_as_the_front_tells_of_a_replica(app: Any) -> None:
    answer = answered(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert int(answer.headers["retry-after"]) > 0


def test_what_was_answered_stays_as_it_is() -> None:
    assert answered(_whole).status_code == 204
    with pytest.raises(RuntimeError):
        answered(_half)


def test_serve_finds_it_by_its_name() -> None:
    (found,) = validate_http_proxy_callback_return(call_function_from_import_path(PROXY_CALLBACK))
    assert found.cls is Answered
