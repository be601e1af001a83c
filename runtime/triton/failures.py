"""Errors as responses: one of Triton's codes, and one line."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from controlnext.errors import (
    ControlNeXtError,
    EngineError,
    OutOfMemoryError,
    QueueFullError,
    is_mistake,
)

logger = logging.getLogger(__name__)

CANCELLED, INTERNAL, INVALID, UNAVAILABLE = "CANCELLED", "INTERNAL", "INVALID_ARG", "UNAVAILABLE"
"""The codes, by the names that ``TritonError`` has for them."""
_INPUTS = {"num_images_per_prompt": "num_images"}
"""Inputs by the pipeline's argument, where the names differ."""
_WORD = re.compile(r"`?\b(" + "|".join(_INPUTS) + r")\b`?|`(\w+)`")


@dataclass(frozen=True)
class Failure:
    """The end of a request without a result: a code of Triton's and a line."""

    code: str
    message: str


def failure_of(error: BaseException) -> Failure:
    """Return what a client is told of ``error``; a bug is logged and not told."""
    if isinstance(error, QueueFullError):
        return Failure(UNAVAILABLE, str(error))
    if isinstance(error, OutOfMemoryError):
        return Failure(UNAVAILABLE, error.for_clients)
    if isinstance(error, EngineError):
        return Failure(INVALID, _line(error.problem))
    if is_mistake(error):
        return Failure(INVALID, _line(str(error)))
    if isinstance(error, ControlNeXtError):
        return Failure(INTERNAL, _line(str(error)))
    logger.error("a request failed", exc_info=error)
    return Failure(INTERNAL, "the model failed; the server's log has the reason")


def _line(message: str) -> str:
    """Return a message on one line, with the names of inputs in place of the pipeline's arguments."""
    named = _WORD.sub(lambda found: _INPUTS[found[1]] if found[1] else found[2], message)
    return " ".join(named.splitlines())
