"""Forms that are not what they should be, and the route in the count of what is refused before it."""

from __future__ import annotations

import re

import pytest

from support.gate import until
from support.serving import Site

EDITS, BOUNDARY = "/v1/images/edits", "boundary"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form_of(**fields: bytes) -> bytes:
    """Return a form with fields of text."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    parts = [(head % name).encode() + value + b"\r\n" for name, value in fields.items()]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize("route", [EDITS, "/v1/videos"])
@pytest.mark.parametrize("left_out", [f"--{BOUNDARY}--\r\n", f"{BOUNDARY}--\r\n", "--\r\n"])
def test_a_form_that_was_cut_off(site: Site, route: str, left_out: str) -> None:
    content = form_of(prompt=b"a").removesuffix(left_out.encode())
    error = site.refused(400, "POST", route, content=content, headers=HEADERS)
    assert error["message"] == "the form ends before the boundary that closes it; send the whole body"
    assert error["code"] == "invalid_body"


def test_what_comes_behind_a_form_does_not_matter(site: Site) -> None:
    content = form_of(prompt=b"a", n=b"many") + b"more"
    assert site.refused(400, "POST", EDITS, content=content, headers=HEADERS)["param"] == "n"


@pytest.mark.parametrize("route", [EDITS, "/v1/videos"])
def test_text_that_is_not_utf8(site: Site, route: str) -> None:
    content = form_of(prompt="a caf\u00e9".encode("latin-1"))
    error = site.refused(400, "POST", route, content=content, headers=HEADERS)
    assert (error["param"], error["message"]) == ("prompt", "prompt is not text in utf-8; send it as UTF-8")


def test_a_number_with_an_underscore(site: Site) -> None:
    error = site.refused(400, "POST", EDITS, content=form_of(prompt=b"1_0", n=b"1_0"), headers=HEADERS)
    assert error["message"] == "n is '1_0'; write the number without _"


@pytest.mark.parametrize(
    ("status", "method", "path", "route"),
    [
        (413, "POST", EDITS, EDITS),
        (401, "GET", "/v1/videos/mine/content", "/v1/videos/{video_id}/content"),
        (401, "GET", "/v1/mine", "(none)"),
    ],
)
def test_what_is_refused_is_counted_by_its_route(
    site: Site, status: int, method: str, path: str, route: str
) -> None:
    def count() -> float:
        pattern = re.escape(f'requests_total{{model="",outcome="invalid",route="{route}"}}') + " (.*)"
        return sum(map(float, re.findall(pattern, site.http.get("/metrics").text)))

    before = count()
    headers = {"Authorization": "Bearer wrong"} if status == 401 else {}
    site.refused(status, method, path, headers=headers, content=b"" if status == 401 else b"x" * (1 << 21))
    until(lambda: count() > before)
