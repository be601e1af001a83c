"""The form of the server's log: lines with the time, or JSON."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from controlnext.errors import visible
from controlnext.secrets import hidden

PREFIX = "controlnext: "
"""The start of the lines of the command line, which JSON does not need."""


def write_log(*, as_json: bool, prompts: bool, level: int = logging.INFO) -> None:
    """Write the log of the server on stderr, from ``level`` up, as lines for people or as JSON.

    Without ``prompts`` no part of a prompt is in it.
    """
    logging.getLogger("controlnext.runtime.serving").setLevel(level)
    if not prompts:
        # its warnings show what is cut off a prompt that is too long
        logging.getLogger("controlnext.runtime.prompts").setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers + logging.getLogger("controlnext").handlers:
        inner = handler.formatter or logging.Formatter()
        handler.setFormatter(JsonFormatter(inner) if as_json else TimedFormatter(inner))


def write_worker_log(*, as_json: bool, prompts: bool, level: int = logging.INFO) -> None:
    """Write the log as :func:`write_log` does, in a process whose own log is somebody else's."""
    handler, own = logging.StreamHandler(), logging.getLogger("controlnext")
    handler.setFormatter(logging.Formatter(f"{PREFIX}%(message)s"))
    own.handlers, own.propagate = [handler], False
    if level != logging.INFO:
        own.setLevel(level)
    write_log(as_json=as_json, prompts=prompts, level=level)


class TimedFormatter(logging.Formatter):
    """Formatter that puts the time before the line of another formatter, without secrets."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line: the time in UTC, then what the other formatter makes of it."""
        return f"{_time(record)} {visible(self._inner.format(record))}"


class JsonFormatter(logging.Formatter):
    """Formatter that writes one JSON object a line: ``time``, ``level``, ``message``.

    The record of a request has its fields instead of the text, and the message ``request``. Another formatter
    makes the text of the others. Secrets are left out.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a JSON object in one line."""
        fields = {"time": _time(record), "level": record.levelname.lower()}
        request = getattr(record, "request", None)
        told = (
            {"message": self._inner.format(record).removeprefix(PREFIX)}
            if request is None
            else {"message": "request", **request}
        )
        return json.dumps({**fields, **hidden(told)})


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
