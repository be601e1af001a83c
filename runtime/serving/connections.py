"""The connections of the HTTP server: the head of a request has a limit of size and of time."""

from __future__ import annotations

import asyncio
import json

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from controlnext.runtime.serving.errors import HttpError

HEAD_BYTES = 64 * 1024
"""Largest head of a request, its first line and headers: more than any client of these routes sends."""
HEAD_SECONDS = 30.0
"""Time for the head of a request."""


def http_config(application: ASGIApp, grace: int) -> uvicorn.Config:
    """Return what uvicorn is told: the application, and ``grace`` seconds for the last answers."""
    return uvicorn.Config(
        application,
        lifespan="on",
        # one implementation whatever is installed; httptools has no limit for the head
        http=Connection,
        h11_max_incomplete_event_size=HEAD_BYTES,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )


class Connection(H11Protocol):
    """uvicorn's connection, closed where the head of a request is not there ``head_seconds`` after its first
    byte, or after the connection was opened. (Between requests uvicorn has a limit of its own.)"""

    head_seconds = HEAD_SECONDS
    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self._limit()

    def data_received(self, data: bytes) -> None:
        """Go on waiting, or not any more."""
        super().data_received(data)
        self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _limit(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_more()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.head_seconds, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or has too large a head, and close: in OpenAI's shape, as all else."""
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        refusal = HttpError(
            400, f"{msg.rstrip('.')}: it is no HTTP, or its head is too large", code="invalid_http"
        )
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=json.dumps(refusal.body).encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Serve a request for another protocol as if it were none, as HTTP wants it, without the advice to
        install one that uvicorn would log for every client that asks."""
