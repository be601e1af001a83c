"""Requests as data, and an ASGI application that is asked as uvicorn would ask it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fuzz.makers import MAKERS

PATIENCE = 60
"""Seconds for an answer."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")


@dataclass(frozen=True)
class Call:
    """A request: ``leaves``: whether the client goes when it has sent it; ``chunk``: bytes of a part."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    chunk: int = 1 << 16
    leaves: bool = False


@dataclass(frozen=True)
class Answer:
    """What the application answered; ``status`` is 0 where it did not."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def read_call(head: Path, names: Mapping[str, str]) -> Call | None:
    """Return the request in the file ``head`` with the body beside it; None where HTTP has no such request.

    ``names``: what stands for the parts of its path that are in braces.
    """
    try:
        given = json.loads(head.read_text())
        method, path, headers = str(given["method"]), str(given["path"]), dict(given["headers"])
        query = str(given.get("query", ""))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    for name, value in names.items():
        path, query = (text.replace(f"{{{name}}}", value) for text in (path, query))
    body = _body(head)
    raw = [pair for pair in map(_header, headers.items()) if pair]
    told = next((value for name, value in raw if name == b"content-length"), b"")
    # a server that reads HTTP lets no other lengths pass
    if told and not (told.isdigit() and len(told) < 20):
        raw, told = [pair for pair in raw if pair[0] != b"content-length"], b""
    short = told and int(told) > len(body)
    chunk = given.get("chunk")
    return Call(
        method if _TOKEN.fullmatch(method) else "GET",
        "/" + path.lstrip("/"),
        quote(query, safe="=&%+", errors="replace").encode(),
        raw,
        body[: int(told)] if told else body,
        chunk if isinstance(chunk, int) and chunk > 0 else 1 << 16,
        bool(short or given.get("leaves") is True),
    )


def _header(pair: tuple[Any, Any]) -> tuple[bytes, bytes] | None:
    name, value = str(pair[0]), re.sub(r"[\r\n\0]", "", str(pair[1]))
    return (name.lower().encode(), value.encode("latin-1", "replace")) if _TOKEN.fullmatch(name) else None


def _body(head: Path) -> bytes:
    stem = head.name.removesuffix(".head.json")
    plain, form = (head.with_name(f"{stem}.{kind}.json") for kind in ("body", "form"))
    if form.is_file():
        try:
            return render_form(json.loads(form.read_text()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return form.read_bytes()
    return plain.read_bytes() if plain.is_file() else b""


def render_form(form: Mapping[str, Any]) -> bytes:
    """Return the body of a form from its parts."""
    boundary, lines = _bytes(form["boundary"]), []
    for part in form["parts"]:
        content = part["content"]
        if isinstance(content, dict):
            content = MAKERS[content["maker"]](**content["options"])
        head = b"".join(_bytes(line) + b"\r\n" for line in part["head"])
        lines.append(b"--" + boundary + b"\r\n" + head + b"\r\n" + _bytes(content) + b"\r\n")
    return b"".join(lines) + _bytes(form["end"])


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


async def ask(application: Any, call: Call) -> Answer:
    """Return the answer of an ASGI application."""
    parts = [call.body[at : at + call.chunk] for at in range(0, max(1, len(call.body)), call.chunk)][:5000]
    sent, ended = iter(parts), asyncio.Event()
    left = len(parts)
    answer: dict[str, Any] = {"status": 0, "headers": [], "body": []}

    async def receive() -> dict[str, Any]:
        nonlocal left
        part = next(sent, None)
        if part is None:
            if not call.leaves:
                await ended.wait()
            return {"type": "http.disconnect"}
        left -= 1
        # one that leaves in the middle of its body never sends the end of it
        return {"type": "http.request", "body": part, "more_body": left > 0 or call.leaves}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.update(status=message["status"], headers=message.get("headers", []))
        elif message["type"] == "http.response.body":
            answer["body"].append(bytes(message.get("body", b"")))
            if not message.get("more_body"):
                ended.set()

    await asyncio.wait_for(application(_scope(call), receive, send), PATIENCE)
    headers = {
        bytes(name).decode().lower(): bytes(value).decode("latin-1") for name, value in answer["headers"]
    }
    return Answer(answer["status"], headers, b"".join(answer["body"]))


def _scope(call: Call) -> dict[str, Any]:
    raw = quote(call.path, safe="/%:@!$&'()*+,;=~", errors="replace")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method.upper(),
        "scheme": "http",
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "root_path": "",
        "query_string": call.query,
        "headers": call.headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
