"""What a server without keys refuses: requests that pages of other sites make browsers send."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from controlnext.runtime.serving.gates import Keys

OWN = "127.0.0.1:8000"


async def _answers(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def answer_to(headers: dict[str, str], *, keys: tuple[str, ...] = (), local: bool = True) -> httpx.Response:
    """Return the answer of a server to a request with these headers."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Keys(_answers, keys, local))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{OWN}") as client:
            return await client.get("/v1/models", headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://elsewhere.example:8000"},
        {"Origin": "null"},
        {"Host": "rebound.example"},
        {"Host": "rebound.example:8000", "Origin": "http://rebound.example:8000"},
        {"Host": "localhost.example"},
        {"Host": "127.0.0.1.example"},
        {"Host": ""},
    ],
)
def test_what_another_site_makes_a_browser_send_is_refused(headers: dict[str, str]) -> None:
    answer = answer_to(headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "cross_site"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{OWN}"},
        {"Host": "localhost:9000", "Origin": "http://localhost:9000"},
        {"Origin": "http://localhost:5173"},
        {"Host": "[::1]:8000"},
        {"Host": "127.0.0.1"},
    ],
)
def test_pages_and_programs_of_this_machine_pass(headers: dict[str, str]) -> None:
    assert answer_to(headers).status_code == 200


def test_a_server_with_a_name_is_reached_by_it() -> None:
    named = {"Host": "images.example", "Origin": "http://images.example"}
    assert answer_to(named, local=False).status_code == 200
    assert answer_to({**named, "Origin": "http://localhost"}, local=False).status_code == 403


def test_keys_say_enough() -> None:
    """Pages of other sites do not know them."""
    headers = {"Host": "images.example", "Origin": "https://elsewhere.example"}
    assert answer_to({**headers, "Authorization": "Bearer right"}, keys=("right",)).status_code == 200
    assert answer_to({**headers, "Authorization": "Bearer wrong"}, keys=("right",)).status_code == 401
