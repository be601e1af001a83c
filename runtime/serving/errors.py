"""Errors as answers, in OpenAI's shape."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from controlnext.errors import (
    ControlNeXtError,
    EngineError,
    OutOfMemoryError,
    QueueFullError,
    StoppingError,
    UnknownModelError,
    is_mistake,
    one_line,
    without_middle,
)
from controlnext.families.values import did_you_mean

IMAGE_FIELDS: Mapping[str, str] = MappingProxyType(
    {"height": "size", "width": "size", "num_images_per_prompt": "n", "mask_image": "mask"}
)
"""Fields of requests for images by the argument of the pipeline, where the names differ."""
EDIT_FIELDS: Mapping[str, str] = MappingProxyType({**IMAGE_FIELDS, "control_image": "image"})
"""The same for requests that have their images as files."""
CLIP_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "height": "size",
        "width": "size",
        "image": "input_reference",
        "control_images": "control_clip",
        "max_guidance_scale": "guidance_scale",
    }
)
"""Fields of requests for clips by the argument of the pipeline, where the names differ."""

_NAMED = re.compile(r"`(\w+)`")
_LONGEST = 80
"""Most characters of a value in a message."""
_INVALID, _SERVER = "invalid_request_error", "server_error"
_LATER = 5
"""Seconds until a server that stops, or starts, may be asked again."""


class HttpError(Exception):
    """An answer that is an error: a status, the fields of OpenAI's error, and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        message = without_middle(one_line(message))
        super().__init__(message)
        self.status, self.headers = status, headers
        param = param and shortened(one_line(param))
        self.fields = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        return {"error": self.fields}


def refusal_of(error: ControlNeXtError, names: Mapping[str, str] = IMAGE_FIELDS) -> HttpError:
    """Return the answer to a request that ended with ``error``; ``names``: its fields by argument.

    A mistake of the request is 400, an unknown model 404, a lack of memory 507, a server that stops 503, and
    all else 500.
    """
    argument = error.argument
    param = names.get(argument, argument) if argument else None
    if isinstance(error, StoppingError):
        headers = {"Retry-After": str(_LATER)}
        return HttpError(503, str(error), kind=_SERVER, code="stopping", headers=headers)
    if isinstance(error, QueueFullError):
        return too_busy(error, _LATER)
    if isinstance(error, UnknownModelError):
        return HttpError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, OutOfMemoryError):
        return _final(507, error.for_clients, "out_of_memory")
    if isinstance(error, EngineError):
        return HttpError(400, error.problem, param=param or "size", code="unsupported")
    if is_mistake(error):
        return HttpError(400, translate(str(error), argument, names), param=param, code="invalid_value")
    return _final(500, str(error), "failed")


def stopping() -> StoppingError:
    """Return the error of a request that comes too late: the server admits no more."""
    return StoppingError("the server is about to stop; repeat the request later")


def stopped() -> StoppingError:
    """Return the error of a request that the server cancelled."""
    return StoppingError("the server stopped before the request was done; repeat it later")


def is_foreseen(error: BaseException) -> bool:
    """Return whether an error tells clients what it is; all others are bugs."""
    return isinstance(error, (HttpError, ControlNeXtError))


def is_failure(error: Exception) -> bool:
    """Return whether an error may be one of the engine or of the server, and not of the request."""
    return not is_foreseen(error) or (isinstance(error, ControlNeXtError) and refusal_of(error).status == 500)


def error_answer(error: BaseException, names: Mapping[str, str], request_id: str) -> HttpError:
    """Return the answer to a request that ended with any error."""
    if isinstance(error, HttpError):
        return error
    return refusal_of(error, names) if isinstance(error, ControlNeXtError) else unexpected(request_id)


def too_busy(error: QueueFullError, seconds: int) -> HttpError:
    """Return the answer to a request that has no place in the queue; one may be free after ``seconds``."""
    return HttpError(
        429,
        f"{error.waiting} requests wait already, as many as may; repeat this one in {seconds} s",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def unexpected(request_id: str) -> HttpError:
    """Return the answer after an error that nobody foresaw, without what it was: the log has it."""
    message = f"the server failed; its log has the reason under request {request_id}"
    return HttpError(500, message, kind=_SERVER, code="internal_error")


def of_validation(found: Mapping[str, Any], known: Sequence[str]) -> HttpError:
    """Return the answer to a body that is not as the schema has it, from pydantic's first error.

    ``known``: the fields that the route has.
    """
    if found["type"] == "json_invalid":
        return HttpError(400, f"the body is not JSON: {found['ctx']['error']}", code="invalid_json")
    path = [part for part in found["loc"] if part not in ("path", "query")]
    if not path:
        return HttpError(400, "the body is not a JSON object; send one", code="invalid_json")
    field = str(path[0])
    place = field + "".join(f"[{part}]" for part in path[1:])
    if found["type"] == "extra_forbidden":
        hint = did_you_mean(field, known) or f"; accepted: {', '.join(known)}"
        message = f"there is no field {shortened(field)}{hint}"
        return HttpError(400, message, param=shortened(field), code="unknown_field")
    if found["type"] == "missing":
        return HttpError(400, f"{place} is missing; give it", param=field, code="missing_field")
    problem = found["msg"].removeprefix("Value error, ")
    given = reprlib.repr(found["input"])
    message = f"{place} is {given}; {problem[:1].lower()}{problem[1:]}"
    return HttpError(400, message, param=field, code="invalid_value")


def translate(message: str, argument: str | None, names: Mapping[str, str]) -> str:
    """Return ``message`` with the fields of the request in place of the pipeline's arguments."""
    # "height is 17" says more than "size is 17"
    if argument and names.get(argument, "size") != "size" and message.startswith(f"{argument} is "):
        message = names[argument] + message.removeprefix(argument)
    return _NAMED.sub(lambda found: names.get(found[1], found[1]), message)


def shortened(text: str) -> str:
    """Return the beginning of a text that may be an image."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _final(status: int, message: str, code: str) -> HttpError:
    """Return an answer that OpenAI's clients do not repeat the request for: it would end the same."""
    return HttpError(status, message, kind=_SERVER, code=code, headers={"x-should-retry": "false"})
