"""The routes that make clips, as jobs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from controlnext.runtime.media.inline_images import bytes_of
from controlnext.runtime.serving.access_log import request_facts
from controlnext.runtime.serving.answers import ClipAnswer, ClipsAnswer, DeletedAnswer, errors
from controlnext.runtime.serving.bodies import form_body, is_form, json_body, read_form, read_json
from controlnext.runtime.serving.clip_calls import ClipCall, ClipFields
from controlnext.runtime.serving.clip_file import ClipFile
from controlnext.runtime.serving.clip_jobs import MOST, ClipJobs
from controlnext.runtime.serving.clip_list import Order, page_of
from controlnext.runtime.serving.clip_work import ClipUploads
from controlnext.runtime.serving.errors import CLIP_FIELDS, HttpError
from controlnext.runtime.serving.generation import unless_left
from controlnext.runtime.serving.service import Service
from controlnext.runtime.serving.settings import ServerSettings

CLIPS = "clips"
"""Attribute of a request's state with the clips to list."""
_FILES = ("input_reference", "control_clip")
_MORE_FILES = 8
"""Files besides the frames; that there are too many frames is told by their number."""
_PAGE = 20
"""Clips of a list unless it is asked for more, as in OpenAI's API."""
_PATIENCE = 1.0
"""Seconds within which a mistake of a request is answered with its own status; later the job fails."""


def video_routes(service: Service, jobs: ClipJobs) -> APIRouter:
    """Return the routes that make clips.

    The list of them is that of ``request.state.clips`` where something before the routes has set one.
    """
    router = APIRouter(tags=["videos"])
    _add_list(router, jobs)

    @router.post(
        "/v1/videos",
        responses=errors(400, 404, 408, 413, 415, 429, 503),
        openapi_extra=_body(),
        response_model_exclude_none=True,
    )
    async def create_video(request: Request) -> ClipAnswer:
        """Begin to make a clip of an image and a control clip."""
        request.state.fields = CLIP_FIELDS
        call, files = await _read(request, service.settings)
        job = jobs.add(call, files)
        job.work.describe(request_facts(request.scope))
        try:
            begun = asyncio.wait([job.generation.begun], timeout=_PATIENCE)
            await unless_left(request, asyncio.ensure_future(begun))
            if job.finished:
                job.generation.task.result()
        except BaseException:
            jobs.remove(job.id)
            raise
        return job.answer()

    @router.get("/v1/videos/{video_id}", responses=errors(404), response_model_exclude_none=True)
    async def describe_video(video_id: str) -> ClipAnswer:
        """Return the state of a clip."""
        return jobs.get(video_id).answer()

    @router.get(
        "/v1/videos/{video_id}/content",
        response_class=ClipFile,
        responses={**errors(400, 404, 409, 416), 200: {"content": {"video/mp4": {}}}},
    )
    async def download_video(video_id: str, variant: Literal["video"] = "video") -> ClipFile:  # noqa: ARG001
        """Return the file of a clip that is completed."""
        job = jobs.get(video_id)
        state = job.answer()
        if state.status != "completed":
            raise _not_completed(state)
        return ClipFile(job.path, media_type="video/mp4", filename=f"{video_id}.mp4")

    @router.delete("/v1/videos/{video_id}", responses=errors(404))
    async def delete_video(video_id: str) -> DeletedAnswer:
        """Cancel a clip, or delete it if it is finished."""
        jobs.remove(video_id)
        return DeletedAnswer(id=video_id)

    return router


def _not_completed(state: ClipAnswer) -> HttpError:
    reason = state.error.message if state.error else f"it is at {state.progress} %; ask again later"
    return HttpError(
        409,
        f"the clip is {state.status}: {reason}",
        param="video_id",
        code="not_completed",
        # a conflict, which OpenAI's client would take for a lock
        headers={"x-should-retry": "false"},
    )


def _add_list(router: APIRouter, jobs: ClipJobs) -> None:
    @router.get("/v1/videos", responses=errors(400, 404), response_model=ClipsAnswer)
    async def list_videos(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MOST)] = _PAGE,
        after: str | None = None,
        order: Order = "desc",
    ) -> Response:
        """List the clips that are there, the newest first unless order is asc."""
        clips = getattr(request.state, CLIPS, None)
        page = page_of(jobs.listed() if clips is None else clips, limit, after, order)
        fields = {**page.model_dump(), "data": [clip.model_dump(exclude_none=True) for clip in page.data]}
        return JSONResponse(fields)


async def _read(request: Request, settings: ServerSettings) -> tuple[ClipFields, ClipUploads]:
    """Return the fields and the images of a request, a form or JSON."""
    if is_form(request):
        form = await read_form(request, settings.max_body, settings.max_frames + _MORE_FILES)
        call = form.parse(ClipFields, *_FILES)
        return call, ClipUploads(*(form.files.get(name, []) for name in _FILES))
    whole = await read_json(request, ClipCall)
    image = whole.input_reference
    files = await asyncio.to_thread(
        lambda: ClipUploads(
            [bytes_of("input_reference", image)] if image else [],
            [bytes_of("control_clip", frame) for frame in whole.control_clip or ()],
        )
    )
    return whole, files


def _body() -> dict[str, Any]:
    """Return the OpenAPI description of the body, a form or JSON."""
    body = form_body(ClipFields, *_FILES, needed=_FILES)
    body["requestBody"]["content"] |= json_body(ClipCall)["requestBody"]["content"]
    return body
