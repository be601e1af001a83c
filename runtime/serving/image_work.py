"""One request for images, from its fields to the images of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from controlnext.errors import ControlNeXtError, blames
from controlnext.runtime.denoise import Step
from controlnext.runtime.media.inline_images import encode_image, encode_text
from controlnext.runtime.media.recipe import InputFile, Recipe
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.preprocess import preprocess
from controlnext.runtime.recipes import make_recipe
from controlnext.runtime.request import Request
from controlnext.runtime.serving.access_log import RequestFacts
from controlnext.runtime.serving.answers import ImageData, ImageEvent, ImagesAnswer, TokenUsage
from controlnext.runtime.serving.calls import ImageFields
from controlnext.runtime.serving.generation import Generation
from controlnext.runtime.serving.image_inputs import RequestImages
from controlnext.runtime.serving.service import Service
from controlnext.runtime.serving.settings import check_size
from controlnext.runtime.unfinished import partial_steps
from controlnext.types import FloatArray

logger = logging.getLogger(__name__)

Source = Callable[[], RequestImages]
"""Decodes the images of a request; called in a thread."""


class ImageWork:
    """A request for images: checks its fields, and makes the answer, or the events of a stream.

    ``kind``: what the types of its events begin with. ``facts`` of the request, for the log, are filled in.
    Raises :class:`InputError` and :class:`UnknownModelError`.
    """

    def __init__(
        self, service: Service, call: ImageFields, source: Source, kind: str, facts: RequestFacts
    ) -> None:
        call.check(service.settings)
        self._service, self._call, self._source, self._kind = service, call, source, kind
        self._profile = service.choose(call.model, "image")
        self._seed = call.chosen_seed()
        self._created = int(time.time())
        self._events: asyncio.Queue[list[ImageEvent] | None] = asyncio.Queue()
        self._facts = facts
        self._given: dict[str, Any] = {}
        self._files: Mapping[str, Sequence[InputFile]] = {}
        self._recipe: Recipe | None = None
        self._describe(facts)

    def _describe(self, facts: RequestFacts) -> None:
        call, family = self._call, self._profile.family
        facts.model, facts.prompt, facts.images = self._profile.bundle.name, call.prompt, call.images
        facts.steps = call.steps(family, self._service.settings)
        facts.rows = self._profile.rows(call.images, call.guidance_scale)
        facts.size = call.size if call.width_and_height else None

    def start(self) -> Generation:
        """Begin the work."""
        watch = self._watch if self._call.partial_images else None
        generation = Generation(
            self._service, self._profile, self._arguments, on_step=watch, finish=self._finish
        )
        generation.task.add_done_callback(lambda _: self._events.put_nowait(None))
        return generation

    async def answer(self, generation: Generation) -> ImagesAnswer:
        """Return the answer to a request that was not to be streamed, once the work is done."""
        images = self._result(generation)
        return ImagesAnswer(
            created=self._created,
            data=[
                ImageData(b64_json=text)
                for text in await asyncio.to_thread(self._encoded, images, self._recipe)
            ],
            output_format=self._call.format,
            size=_size(images[0]),
            seed=self._seed,
        )

    def _finish(self, pipe: Pipeline, result: Any) -> Any:
        """Make the recipe of the result's images while the model is there."""
        if self._call.metadata is not False and self._service.settings.metadata:
            size, request = result.images[0].size, Request(**self._given)
            self._recipe = make_recipe(pipe, request, self._files, size, preprocess=self._call.preprocess)
        return result

    def _result(self, generation: Generation) -> list[Image.Image]:
        images: list[Image.Image] = generation.task.result().images
        self._facts.size = _size(images[0])
        return images

    async def events(self, generation: Generation, pause: float) -> AsyncIterator[ImageEvent | None]:
        """Yield the events of a stream as they come, and None whenever ``pause`` seconds went by without.

        Raises what the work raises.
        """
        while True:
            try:
                async with asyncio.timeout(pause):
                    events = await self._events.get()
            except TimeoutError:
                yield None
                continue
            if events is None:
                break
            for event in events:
                yield event
        for event in await asyncio.to_thread(self._made, self._result(generation), "completed"):
            yield event.model_copy(update={"usage": TokenUsage()})

    def _arguments(self, pipe: Pipeline) -> dict[str, Any]:
        call, settings = self._call, self._service.settings
        given = {**call.arguments(pipe.family, settings), "seed": self._seed}
        images = self._source()
        self._check_size(images)
        if call.preprocess is not None:
            for image in images.controls:
                width, height = image.size
                check_size(image.size, settings, f"the image to preprocess has {width} x {height} pixels")
            with blames("preprocess"):
                made = [preprocess(call.preprocess, image) for image in images.controls]
            images = replace(images, controls=made)
            # what was made may be larger
            self._check_size(images)
        self._given, self._files = {**given, **images.arguments()}, images.files
        return self._given

    def _check_size(self, images: RequestImages) -> None:
        """Raise :class:`InputError` if the result would be larger than the server allows."""
        call, settings = self._call, self._service.settings
        size, told = call.width_and_height, f"size is {call.size}"
        if size is None:
            if images.size is None:
                return
            size = images.size
            told = f"size is missing and the image has {size[0]} x {size[1]} pixels"
            check_size(size, settings, told)
        if call.upscale is not None:
            width, height = (int(side * call.upscale) for side in size)
            check_size((width, height), settings, f"{told}, and upscale {call.upscale:g}")

    def _watch(self, pipe: Pipeline, step: Step) -> Coroutine[Any, Any, None] | None:
        number = partial_steps(step.total, self._call.partial_images or 0).get(step.index)
        return None if number is None else self._show(pipe, step, number)

    async def _show(self, pipe: Pipeline, step: Step, number: int) -> None:
        try:
            events = await asyncio.to_thread(self._unfinished, pipe, step.latents, number)
        except ControlNeXtError as error:
            logger.warning("an unfinished image could not be decoded: %s", error)
            return
        self._events.put_nowait(events)

    def _unfinished(self, pipe: Pipeline, latents: FloatArray, number: int) -> list[ImageEvent]:
        return self._made(pipe.unfinished(latents), "partial_image", number)

    def _made(self, images: Any, what: str, number: int | None = None) -> list[ImageEvent]:
        return [
            ImageEvent(
                type=f"{self._kind}.{what}",
                b64_json=text,
                created_at=self._created,
                size=_size(images[0]),
                output_format=self._call.format,
                image_index=index,
                seed=self._seed,
                partial_image_index=number,
            )
            for index, text in enumerate(self._encoded(images, self._recipe if number is None else None))
        ]

    def _encoded(self, images: Sequence[Image.Image], recipe: Recipe | None) -> list[str]:
        call, count = self._call, len(images)
        quality = 100 if call.output_compression is None else call.output_compression
        recipes = [recipe and recipe.of_image(number, count) for number in range(1, count + 1)]
        return [
            encode_text(encode_image(image, call.format, quality, own))
            for image, own in zip(images, recipes, strict=True)
        ]


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
