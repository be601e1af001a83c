"""The routes that make images."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from fastapi import APIRouter, Request, Response

from controlnext.runtime.serving.access_log import request_facts
from controlnext.runtime.serving.answers import ImagesAnswer, errors
from controlnext.runtime.serving.bodies import form_body, json_body, read_form, read_json
from controlnext.runtime.serving.calls import ImageCall, ImageFields
from controlnext.runtime.serving.errors import IMAGE_FIELDS
from controlnext.runtime.serving.generation import unless_left
from controlnext.runtime.serving.image_inputs import (
    EDIT_FILES,
    check_form,
    fields_of_form,
    images_of_call,
    images_of_form,
    read_texts,
)
from controlnext.runtime.serving.image_work import ImageWork, Source
from controlnext.runtime.serving.service import Service
from controlnext.runtime.serving.streams import EVENT_STREAM, stream

_EVENT = (
    "event: image_generation.partial_image\n"
    'data: {"type":"image_generation.partial_image","b64_json":"iVBORw0...","partial_image_index":0,...}\n\n'
)
ANSWERS = {
    200: {
        "description": "The images; with stream the events of their making, each with one image.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}, "example": _EVENT}},
    },
    **errors(400, 404, 408, 413, 415, 429, 503, 507),
}


def image_routes(service: Service) -> APIRouter:
    """Return the routes that make images."""
    router = APIRouter(tags=["images"])

    @router.post(
        "/v1/images/generations",
        response_model=ImagesAnswer,
        responses=ANSWERS,
        openapi_extra=json_body(ImageCall),
    )
    async def generate_images(request: Request) -> Response:
        """Make images of a prompt and a control image, or from an image."""
        call = await read_json(request, ImageCall)
        source = partial(images_of_call, call, service.settings.max_pixels)
        return await _answer(request, service, call, source, "image_generation", IMAGE_FIELDS)

    @router.post(
        "/v1/images/edits",
        response_model=ImagesAnswer,
        responses=ANSWERS,
        openapi_extra=form_body(ImageFields, *EDIT_FILES, needed=["image"]),
    )
    async def edit_images(request: Request) -> Response:
        """Make images of a prompt and an image with a control image, or a control image alone, as files."""
        form = await read_form(request, service.settings.max_body)
        read_texts(form)
        call = form.parse(ImageFields, *EDIT_FILES)
        check_form(form, call)
        source = partial(images_of_form, form, service.settings.max_pixels)
        return await _answer(request, service, call, source, "image_edit", fields_of_form(form))

    return router


async def _answer(
    request: Request,
    service: Service,
    call: ImageFields,
    source: Source,
    kind: str,
    names: Mapping[str, str],
) -> Response:
    """Return the answer to a request for images; ``names``: its fields by the pipeline's arguments."""
    request.state.fields = names
    work = ImageWork(service, call, source, kind, request_facts(request.scope))
    if call.stream:
        return await stream(request, work, names)
    generation = work.start()
    try:
        await unless_left(request, generation.task)
    finally:
        generation.cancel()
    answer = await work.answer(generation)
    return Response(await asyncio.to_thread(answer.model_dump_json), media_type="application/json")
