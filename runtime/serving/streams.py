"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping

from fastapi import Request
from fastapi.responses import StreamingResponse

from controlnext.errors import ControlNeXtError
from controlnext.runtime.serving.access_log import request_facts
from controlnext.runtime.serving.answers import ImageEvent
from controlnext.runtime.serving.errors import HttpError, refusal_of, unexpected
from controlnext.runtime.serving.generation import Generation, unless_left
from controlnext.runtime.serving.image_work import ImageWork
from controlnext.runtime.serving.metrics import Outcome
from controlnext.runtime.serving.request_ids import request_id

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
_PAUSE = 10.0
"""Seconds without an event after which a comment is sent, so that nothing between takes the stream for
dead. An error within the first such pause is answered with its own status."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_WAITING = b": waiting\n\n"


async def stream(request: Request, work: ImageWork, names: Mapping[str, str]) -> StreamingResponse:
    """Return the answer with the events of ``work``.

    Raises what the work raises before its first step, if that is soon; later it is an event ``error``.
    """
    generation = work.start()
    try:
        begun = asyncio.ensure_future(asyncio.wait([generation.begun], timeout=_PAUSE))
        await unless_left(request, begun)
        if generation.task.done():
            generation.task.result()
    except BaseException:
        generation.cancel()
        raise
    return StreamingResponse(
        _events(request, work, generation, names), media_type=EVENT_STREAM, headers=_HEADERS
    )


async def _events(
    request: Request, work: ImageWork, generation: Generation, names: Mapping[str, str]
) -> AsyncIterator[bytes]:
    try:
        async for event in work.events(generation, _PAUSE):
            yield _WAITING if event is None else _event(event)
    except Exception as error:
        refusal = _refusal(request, error, names)
        request_facts(request.scope).outcome = Outcome.of(refusal.status)
        yield b"event: error\ndata: %s\n\n" % json.dumps(refusal.body).encode()
    finally:
        generation.cancel()


def _event(event: ImageEvent) -> bytes:
    data = event.model_dump_json(exclude_none=True)
    return f"event: {event.type}\ndata: {data}\n\n".encode()


def _refusal(request: Request, error: Exception, names: Mapping[str, str]) -> HttpError:
    if isinstance(error, HttpError):
        return error
    if isinstance(error, ControlNeXtError):
        return refusal_of(error, names)
    logger.error("request %s failed", request_id(request.scope), exc_info=error)
    return unexpected(request_id(request.scope))
