"""The bodies of answers, in OpenAI's shapes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from controlnext.runtime.serving.calls import ImageFormat


class ErrorFields(BaseModel):
    """An error; ``param`` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorFields


class ImageData(BaseModel):
    """One image of an answer."""

    b64_json: str


class ImagesAnswer(BaseModel):
    """The answer to a request for images; ``seed`` is the one that was used."""

    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    size: str
    seed: int


class TokenDetails(BaseModel):
    """Kinds of tokens, none of which are counted here."""

    image_tokens: int = 0
    text_tokens: int = 0


class TokenUsage(BaseModel):
    """The tokens of a request, which OpenAI's clients expect: none are counted here."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class ImageEvent(BaseModel):
    """An event of a stream: an unfinished image, or a finished one.

    ``type``: ``image_generation.partial_image`` or ``image_generation.completed``, with ``image_edit`` for
    requests with files. ``image_index``: which of the ``n`` images it is; each has its own events.
    """

    type: str
    b64_json: str
    created_at: int
    size: str
    output_format: ImageFormat
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    image_index: int
    seed: int
    partial_image_index: int | None = None
    usage: TokenUsage | None = None


class ModelFacts(BaseModel):
    """Facts of a bundle; ``size``, its best, is None where the bundle does not tell."""

    task: Literal["image", "video"]
    family: str
    samplers: list[str]
    default_steps: int
    default_guidance: float
    controls: int
    size: str | None


class ModelAnswer(BaseModel):
    """A bundle that is served."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "controlnext"
    controlnext: ModelFacts


class ModelsAnswer(BaseModel):
    """The bundles that are served."""

    data: list[ModelAnswer]
    object: Literal["list"] = "list"


class JobError(BaseModel):
    """The reason for which a clip failed."""

    code: str
    message: str
    param: str | None = None
    type: str | None = None


class ClipAnswer(BaseModel):
    """The job that makes a clip; times are in seconds since 1970, ``progress`` in percent.

    ``seconds`` and ``size`` are of the clip, as far as they are known yet.
    """

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    model: str
    prompt: str | None = None
    seconds: str
    size: str
    seed: int
    error: JobError | None = None


class ClipsAnswer(BaseModel):
    """A page of the clips that are there; ``last_id`` is what the next page comes after."""

    object: Literal["list"] = "list"
    data: list[ClipAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedAnswer(BaseModel):
    """The answer to the deletion of a clip."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class HealthAnswer(BaseModel):
    """The state of the server."""

    status: Literal["ok", "ready", "loading", "stopping"]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of a route's errors, those that any route has among them."""
    return {
        status: {"model": ErrorAnswer, "description": _MEANINGS[status]}
        for status in (401, 403, 500, *statuses)
    }


_MEANINGS = {
    400: "The request has a mistake; param names the field.",
    401: "The key is missing or wrong.",
    403: "The page of another site asks, or by a name that is not this server's.",
    404: "There is nothing of that name.",
    408: "The body came too slowly.",
    409: "It is not done yet.",
    413: "The body is too large.",
    415: "The body is compressed.",
    416: "The clip ends before that range.",
    429: "The queue is full; Retry-After says when to come again.",
    500: "The work failed.",
    503: "The server does not admit requests now; Retry-After says when to come again.",
    507: "There is not enough memory for this request.",
}
