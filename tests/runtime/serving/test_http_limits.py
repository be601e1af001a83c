"""What a request may not do: too large bodies, images that are bombs, paths and URLs, a missing key."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from support.gate import until
from support.recipe import drawing
from support.serving import Site, file_of, image_call, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
MOST = 1 << 20
"""Limit of a body, as in conftest.py."""


def bomb(width: int, height: int) -> bytes:
    """Return a PNG file whose header promises this size; its pixels are missing."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@contextmanager
def chunked(site: Site, count: int, headers: str = "") -> Iterator[socket.socket]:
    """Send ``count`` chunks of a body whose length is not told; yield the connection."""
    host, port = site.address.removeprefix("http://").split(":")
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n{headers}"
    head += "Authorization: Bearer first-key\r\nContent-Type: application/json\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        for _ in range(count):
            connection.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        yield connection


@pytest.mark.parametrize("route", [ROUTE, EDITS])
def test_a_body_whose_length_is_too_large(site: Site, route: str) -> None:
    given: dict[str, Any] = (
        {"files": {"image": b"x" * MOST}, "data": {"prompt": "a"}}
        if route == EDITS
        else {"json": image_call(control_image="x" * MOST)}
    )
    error = site.refused(413, "POST", route, **given)
    assert (error["code"], error["param"]) == ("body_too_large", None)
    assert str(MOST) in error["message"]


def test_a_body_whose_length_is_not_told(site: Site) -> None:
    with chunked(site, MOST // 0x4000 + 1) as connection:
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert json.load(answer)["error"]["code"] == "body_too_large"


def test_the_log_of_a_large_body(here: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "controlnext.runtime.serving.access_log"):
        here.refused(413, "POST", ROUTE, content=b"x" * 2 * MOST)
        until(lambda: bool(caplog.records))
    assert "413" in caplog.text
    assert "outcome=invalid" in caplog.text


def test_the_client_of_openai_gets_the_answer_to_a_large_body(site: Site) -> None:
    """Though it reads no answer before it has sent all of its body."""
    with pytest.raises(openai.APIStatusError) as caught:
        site.openai("first-key").images.edit(image=b"x" * 6 * MOST, prompt="a")
    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb(30_000, 30_000), "has too many pixels"),
        (bomb(9_000, 9_000), "has 9000 x 9000 pixels; this server takes at most 65536"),
        (file_of(Image.new("RGB", (1, 65_537))), "has 1 x 65537 pixels"),
        (bomb(64, 64), "is damaged"),
        (file_of(drawing(1, 64, 64), "JPEG")[:-300], "is damaged"),
        (file_of(drawing(1, 16, 16), "GIF"), "is not an image that is read here"),
        (file_of(drawing(1, 16, 16), "TIFF"), "give a PNG, JPEG or WebP image"),
        (b"", "is not an image that is read here"),
    ],
    ids=["bomb", "large", "long", "no-pixels", "truncated", "gif", "tiff", "empty"],
)
def test_images_that_are_not_decoded(site: Site, content: bytes, message: str) -> None:
    text = base64.b64encode(content).decode()
    error = site.refused(400, "POST", ROUTE, json=image_call(control_image=text))
    assert error["param"] == "control_image"
    assert error["message"].startswith("control_image ")
    assert message in error["message"]
    error = site.refused(400, "POST", EDITS, data={"prompt": "a"}, files={"image": content or b"x"})
    assert (error["param"], error["message"][:6]) == ("image", "image ")


def test_the_size_of_the_control_image_is_limited_too(site: Site) -> None:
    large = text_of(drawing(1, 72, 16))
    error = site.refused(400, "POST", ROUTE, json=image_call(control_image=large))
    assert (error["param"], "72 x 16 pixels" in error["message"]) == ("size", True)
    assert site.http.post(ROUTE, json=image_call(control_image=large, size="64x16")).status_code == 200


def test_an_image_that_is_far_longer_than_wide(site: Site) -> None:
    """To scale it down would hold up all threads."""
    thin = text_of(Image.new("L", (1, 20_000)))
    error = site.refused(400, "POST", ROUTE, json=image_call(control_image=thin))
    assert "control_image has 1 x 20000 pixels; this server takes at most 16384" in error["message"]


@pytest.mark.parametrize("route", ["/v1/images/generations", "/v1/images/edits", "/v1/videos"])
def test_a_compressed_body(site: Site, route: str) -> None:
    """What it would become in memory has no limit."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    error = site.refused(415, "POST", route, content=gzip.compress(b"{}"), headers=headers)
    assert error["code"] == "invalid_body"


def test_no_path_or_url_is_opened(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "control.png"
    path.write_bytes(file_of(drawing(1, 24, 16)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/control.png"
        for given in (address, str(path), path.as_uri(), f"data:text/uri-list;base64,{address}", "a.png"):
            error = site.refused(400, "POST", ROUTE, json=image_call(control_image=given))
            assert error["param"] == "control_image"
            assert "URLs and paths are not opened" in error["message"]
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("path", [ROUTE, EDITS, "/v1/models", "/v1/models/toy", "/v1/none", "/metrics"])
@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", "Basic first-key", "Bearer first-keys"])
def test_a_key_is_needed(site: Site, path: str, value: str) -> None:
    error = site.refused(401, "POST", path, headers={"Authorization": value})
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "Authorization: Bearer" in error["message"]


def test_each_key_opens(site: Site) -> None:
    with pytest.raises(openai.AuthenticationError):
        site.openai("third-key").models.list()
    for key in ("first-key", "second-key"):
        assert [model.id for model in site.openai(key).models.list()] == ["toy"]
    response = site.http.get("/v1/models", headers={"Authorization": ""})
    assert response.headers["www-authenticate"] == "Bearer"


def test_probes_and_the_page_need_no_key(site: Site) -> None:
    headers = {"Authorization": ""}
    for path in ("/", "/health/live", "/health/ready", "/openapi.json"):
        assert site.http.get(path, headers=headers).status_code == 200
    for path in ("/", "/health/live", "/health/ready", "/page/page.js"):
        answer = site.http.head(path, headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_client_without_a_key_need_not_be_heard(site: Site) -> None:
    """It is answered before its body is read."""
    with chunked(site, 1, "Authorization: Bearer wrong\r\n") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(("own", "kept"), [("mine-1", True), ("a" * 129, False), ("two words", False)])
def test_request_ids(here: Site, own: str, kept: bool) -> None:
    response = here.http.get("/health/live", headers={"x-request-id": own})
    assert (response.headers["x-request-id"] == own) == kept


def test_every_answer_has_one_id(site: Site) -> None:
    """On a cluster the proxy gives it."""
    for headers in ({}, {"x-request-id": "mine-1"}):
        own = site.http.get("/health/live", headers=headers).headers["x-request-id"]
        assert own == headers.get("x-request-id", own)
        assert re.fullmatch(r"[\w-]+", own)


def test_a_failure_is_found_by_its_id(
    here: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlnext.runtime.serving.images.ImageWork", None)
    with caplog.at_level(logging.ERROR):
        error = here.refused(500, "POST", ROUTE, json=image_call(), headers={"x-request-id": "broken"})
    assert error["message"] == "the server failed; its log has the reason under request broken"
    assert "request broken failed" in caplog.text
    assert "NoneType" in caplog.text


def test_routes_that_are_not_there(site: Site) -> None:
    error = site.refused(404, "GET", "/v1/none")
    assert error["message"].startswith("there is no route GET /v1/none")
    error = site.refused(404, "GET", f"/v1/%00{'a' * 5000}")
    assert error["message"].startswith(r"there is no route GET /v1/\x00aaa")
    assert error["message"].endswith("/openapi.json describes those there are")
    assert len(error["message"]) < 4000
    error = site.refused(405, "GET", ROUTE)
    assert "the path accepts POST" in error["message"]
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"\xff", b'{"prompt": "\\ud800"}', b"[" * 100_000, b"9" * 5000):
        error = site.refused(400, "POST", ROUTE, content=content, headers=headers)
        assert (error["code"], error["param"]) == ("invalid_json", None)
    error = site.refused(400, "POST", ROUTE, content=b"[]", headers=headers)
    assert error["message"] == "the body is not a JSON object; send one"
    error = site.refused(400, "POST", ROUTE, content=b"{}")
    assert error["message"] == "Content-Type is missing; send JSON (application/json)"
    error = site.refused(400, "POST", EDITS, json={})
    assert "send a form" in error["message"]
