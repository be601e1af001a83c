"""The work of one request, from its model to its result, beside the request itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from controlnext.errors import InputError, QueueFullError
from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.denoise import Step
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.serving.errors import stopped, stopping, too_busy
from controlnext.runtime.serving.service import Profile, Service

Result = TypeVar("Result")

Arguments = Callable[[Pipeline], dict[str, Any]]
"""Makes the arguments of the pipeline's call; called in a thread, as images are decoded there."""
Finish = Callable[[Pipeline, Any], Any]
"""Makes the answer of what the pipeline's call returns; called in a thread, while the model is held."""
OnStep = Callable[[Pipeline, Step], Coroutine[Any, Any, None] | None]
"""Is told of a step on the event loop; what it returns is awaited before the model is let go."""


class Generation:
    """The making of one request's result, which goes on beside the request until it is done or cancelled.

    ``task``: ends with what ``finish``, or else the pipeline's call, returns or raises. ``begun``: is done
    after the first step, or when there will be none.
    """

    def __init__(
        self,
        service: Service,
        profile: Profile,
        arguments: Arguments,
        *,
        on_step: OnStep | None = None,
        finish: Finish | None = None,
    ) -> None:
        self._service, self._profile = service, profile
        self._arguments, self._on_step, self._finish = arguments, on_step, finish
        self._beside: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = self._loop.create_future()
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Stop within a step, if it is not done."""
        self.task.cancel()

    async def _run(self) -> Any:
        async with self._service.models.use(self._profile.bundle.name) as model:
            if model.batcher.full:
                # before images are decoded in vain
                raise self._busy(QueueFullError(model.batcher.waiting))
            arguments = await asyncio.to_thread(self._arguments, model.pipe)
            try:
                future = self._submit(model.pipe, model.batcher, arguments)
                result = await self._outcome(future)
                if self._finish is not None:
                    finishing = self._attend(asyncio.to_thread(self._finish, model.pipe, result))
                    result = await asyncio.shield(finishing)
            finally:
                if self._beside:
                    # threads that use the model's engines
                    await asyncio.wait(self._beside)
            self._profile.pace.done(model.batcher)
            return result

    def _submit(self, pipe: Pipeline, batcher: Batcher, arguments: dict[str, Any]) -> Future[Any]:
        def told(step: Step) -> None:
            self._loop.call_soon_threadsafe(self._took, pipe, step)

        try:
            return batcher.submit(on_step=told, **arguments)
        except QueueFullError as error:
            raise self._busy(error) from error
        except InputError as error:
            raise stopping() from error

    async def _outcome(self, future: Future[Any]) -> Any:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if (own := asyncio.current_task()) and own.cancelling():
                raise
            raise stopped() from None

    def _busy(self, error: QueueFullError) -> Exception:
        return too_busy(error, self._profile.pace.seconds(error.waiting))

    def _took(self, pipe: Pipeline, step: Step) -> None:
        self._begin()
        if self._on_step is None or self.task.done() or not all(work.done() for work in self._beside):
            return
        if (work := self._on_step(pipe, step)) is not None:
            self._attend(work)

    def _attend(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start work beside the run that uses the model: it is not let go before that has ended."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(_take_note)
        return task

    def _begin(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._begin()
        _take_note(task)


def _take_note(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from complaining of an error for which nobody is there to ask any more."""
    if not task.cancelled():
        task.exception()


async def unless_left(request: Request, work: asyncio.Future[Result]) -> Result:
    """Return the result of ``work``; if the client leaves before, raise :class:`ClientDisconnect`."""
    left = asyncio.create_task(_until_left(request))
    try:
        waiting: set[asyncio.Future[Any]] = {left, work}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        left.cancel()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
