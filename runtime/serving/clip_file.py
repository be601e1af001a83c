"""The file of a clip as an answer, or a part of it."""

from __future__ import annotations

from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from controlnext.runtime.serving.errors import HttpError, shortened
from controlnext.runtime.serving.request_ids import send_refusal

_REFUSALS = (400, 416)
"""Statuses with which Starlette refuses a range: one that it cannot read, one that is not in the file."""


class ClipFile(FileResponse):
    """A response with a file, or with the range of it that was asked for; errors have OpenAI's shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        refused = False

        async def tell(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                refused = True
                await send_refusal(send, _refusal(scope, message))
            elif not refused:
                await send(message)

        await super().__call__(scope, receive, tell)


def _refusal(scope: Scope, message: Message) -> HttpError:
    given = shortened(Headers(scope=scope)["range"])
    size = Headers(raw=message["headers"]).get("content-range")
    if size is None:
        return HttpError(400, f"Range is {given}; give one such as bytes=0-99", code="invalid_value")
    return HttpError(
        416,
        f"Range is {given}, and the clip has {size.rpartition('/')[2]} bytes; give one that begins before",
        code="invalid_value",
        headers={"Content-Range": size},
    )
