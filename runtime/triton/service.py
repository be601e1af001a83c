"""The work of a Triton model: requests to a batcher, and their responses back. It knows nothing of Triton."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from controlnext.closeable import Closeable
from controlnext.errors import ControlNeXtError, QueueFullError
from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.batching.worker import Worker
from controlnext.runtime.denoise import Step
from controlnext.runtime.pipelines.image import ImagePipeline
from controlnext.runtime.triton.call import TritonCall
from controlnext.runtime.triton.cancelling import CancelWatch
from controlnext.runtime.triton.failures import CANCELLED, Failure, failure_of
from controlnext.runtime.triton.settings import TritonSettings
from controlnext.runtime.unfinished import partial_steps
from controlnext.types import FloatArray

logger = logging.getLogger(__name__)


class ResponseSender(ABC):
    """Where the responses of one request go. The methods are called from several threads."""

    @abstractmethod
    def send(self, images: list[bytes], seed: int, index: int, *, partial: bool) -> None:
        """Send a response, the last one unless it is ``partial``; ``index`` counts them from 0."""

    @abstractmethod
    def fail(self, failure: Failure) -> None:
        """Send an error as the last response."""

    @abstractmethod
    def is_cancelled(self) -> bool:
        """Return whether nobody waits for the responses any more."""


class TritonService(Closeable):
    """Runs the requests of a Triton model together, whatever their parameters.

    A request joins those that run at the next denoising step. Its images are decoded in the thread that
    submits it; unfinished and finished ones are encoded and sent in a thread of their own.

    Args:
        pipe: the pipeline; closing the service does not close it.
        settings: the limits.
        decoupled: whether a request may have several responses.
    """

    def __init__(self, pipe: ImagePipeline, settings: TritonSettings, *, decoupled: bool) -> None:
        self._pipe, self._settings, self._decoupled = pipe, settings, decoupled
        self._sender = Worker("send")
        self._watch = CancelWatch()
        self._batcher = Batcher(pipe, max_rows=settings.max_rows, max_waiting=settings.max_waiting)

    def submit(
        self, tensors: Mapping[str, np.ndarray], reply: ResponseSender, parameters: Collection[str] = ()
    ) -> None:
        """Begin a request, whose result or error ``reply`` gets; arguments as of :meth:`TritonCall.of`."""
        try:
            self._start(TritonCall.of(tensors, parameters), reply)
        except Exception as error:
            reply.fail(failure_of(error))

    def _start(self, call: TritonCall, reply: ResponseSender) -> None:
        call.check(self._settings, self._decoupled)
        if self._batcher.full:
            # before images are decoded in vain
            raise QueueFullError(self._batcher.waiting)
        arguments = call.arguments(self._pipe.family, self._settings)
        job = _TritonJob(self._pipe, self._sender, call, reply)
        future = self._batcher.submit(on_step=job.took, **arguments)
        future.add_done_callback(job.done)
        self._watch.add(future, reply.is_cancelled)

    def close(self) -> None:
        """Cancel what runs, send the last responses and stop the threads."""
        self._batcher.close(cancel=True)
        self._watch.close()
        self._sender.stop()


class _TritonJob:
    """A request at work: sends its unfinished images on the way, and its result."""

    def __init__(self, pipe: ImagePipeline, sender: Worker, call: TritonCall, reply: ResponseSender) -> None:
        self._pipe, self._sender, self._call, self._reply = pipe, sender, call, reply
        self._sent = 0
        self._shows = False

    def took(self, step: Step) -> None:
        """Have an unfinished image shown after the steps for it, unless the last one is still at work."""
        if step.index in partial_steps(step.total, self._call.partial_images) and not self._shows:
            self._shows = True
            self._sender.submit(self._show, step.latents)

    def done(self, future: Future[Any]) -> None:
        """Have the result sent."""
        self._sender.submit(self._finish, future)

    def _show(self, latents: FloatArray) -> None:
        try:
            if not self._reply.is_cancelled():
                self._send(self._pipe.unfinished(latents), partial=True)
        except ControlNeXtError as error:
            logger.warning("an unfinished image could not be decoded: %s", error)
        except Exception:
            logger.exception("an unfinished image could not be sent")
        finally:
            self._shows = False

    def _finish(self, future: Future[Any]) -> None:
        try:
            if future.cancelled():
                self._reply.fail(Failure(CANCELLED, "the request was cancelled"))
            elif error := future.exception():
                self._reply.fail(failure_of(error))
            else:
                self._send(future.result().images, partial=False)
        except Exception as error:
            logger.exception("a response could not be sent")
            self._reply.fail(failure_of(error))

    def _send(self, images: Any, *, partial: bool) -> None:
        self._reply.send(self._call.encoded(images), self._call.seed, self._sent, partial=partial)
        self._sent += 1
