"""An addition to Serve's proxies: they tell of a front that died as the front tells of a replica."""

from __future__ import annotations

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlnext.runtime.cluster.reply import unavailable
from controlnext.runtime.serving.request_ids import send_refusal

logger = logging.getLogger(__name__)


def middlewares() -> list[Middleware]:
    """Return what a proxy's requests pass; Serve asks for it by its name in the environment."""
    return [Middleware(Answered)]


class Answered:
    """An ASGI middleware that answers with 503 where nothing else answers: the front has died."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except Exception:
            if begun:
                raise
            logger.exception("a request was not answered")
        if not begun and scope["type"] == "http":
            await send_refusal(send, unavailable())
