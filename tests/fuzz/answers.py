"""Judges answers of the server: what no request may bring about."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from fuzz.http_calls import Answer
from fuzz.verdict import wrong_text

ROOT = str(Path(__file__).parents[2])
SHAPE = {"message", "type", "param", "code"}


class Log(logging.Handler):
    """Keeps the errors and tracebacks that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        if record.levelno >= logging.ERROR or record.exc_info:
            self.failures.append(self.format(record))


def fault_of(answer: Answer, places: list[str]) -> str | None:
    """Return what is wrong with an answer, or None; ``places``: paths that it may not tell."""
    text = answer.body.decode("utf-8", "replace")
    if leaked := [place for place in (*places, ROOT, sys.prefix, "Traceback (most") if place in text]:
        return f"it tells {leaked[0]!r}"
    length = answer.headers.get("content-length", str(len(answer.body)))
    if length != str(len(answer.body)) and answer.status not in (204, 304):
        return f"it has {len(answer.body)} bytes and says {length}"
    if answer.status >= 500:
        return f"status {answer.status}"
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        events = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: "))
        return next(filter(None, map(_fault_of_event, events)), None)
    return _fault_of_error(text) if answer.status >= 400 else None


def _fault_of_event(event: str) -> str | None:
    return _fault_of_error(event) if "error" in json.loads(event) else None


def _fault_of_error(text: str) -> str | None:
    """Return what is wrong with the body of an error."""
    try:
        error: dict[str, Any] = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return "it is not an error of OpenAI's shape"
    return fault_of_fields(error)


def fault_of_fields(error: dict[str, Any]) -> str | None:
    """Return what is wrong with the fields of an error, or None."""
    if set(error) != SHAPE or not all(value is None or isinstance(value, str) for value in error.values()):
        return f"it is not an error of OpenAI's shape: {error}"
    if error["type"] == "server_error":
        return f"an error of the server: {error['message']}"
    if not error["message"] or "\n" in error["message"]:
        return f"its message is {error['message']!r}"
    return next(filter(None, (wrong_text(value or "") for value in error.values())), None)
