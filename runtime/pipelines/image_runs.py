"""The runs of a request for images: from noise or from an image, and a second one at a larger size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from controlnext.image_input import Bands
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.conditioning import Conditioner
from controlnext.runtime.denoise import Denoising
from controlnext.runtime.guidance import embedding_input, is_guided
from controlnext.runtime.image_processing import resize_bilinear
from controlnext.runtime.image_prompts import ImagePrompts
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.pipelines.beginning import MASK, Beginner, Beginning
from controlnext.runtime.pipelines.image_controls import control_images, control_scale, for_every_row
from controlnext.runtime.pipelines.image_denoising import ImageDenoising
from controlnext.runtime.pipelines.start_image import StartImage
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import Request
from controlnext.runtime.samplers import Sampler
from controlnext.runtime.sizes import OwnSize, Size, enlarged_size
from controlnext.runtime.step_cache import open_step_cache
from controlnext.runtime.step_end import generator_of, latents_after_step
from controlnext.runtime.step_parts import StepPart
from controlnext.runtime.vae import control_array
from controlnext.types import FloatArray


@dataclass(frozen=True)
class ImageInputs:
    """The images of a request: those of each control, and those that it starts from."""

    controls: Sequence[list[Bands]]
    start: StartImage | None

    def control_arrays(self, height: int, width: int) -> list[FloatArray]:
        """Return the images of each control at a size."""
        fitted = self.controls
        if self.start is not None:
            fitted = [self.start.control(own, height, width) for own in self.controls]
        return [control_array(own, height, width) for own in fitted]


@dataclass(frozen=True)
class _Pass:
    """One run of a request: its size, its sampler, and the steps of the other runs before and after it."""

    request: Request
    inputs: ImageInputs
    size: Size
    sampler: Sampler
    generator: TorchGenerator
    earlier: int = 0
    later: int = 0


class ImageRuns(Pipeline):
    """The part of an image pipeline that makes the runs of a request."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._condition = Conditioner(bundle)
        self._image_prompts = ImagePrompts(bundle)
        self._beginner = Beginner(bundle, inpaints=MASK in self.inputs)

    def _read(self, request: Request) -> tuple[ImageInputs, OwnSize]:
        self._beginner.check(request)
        controls = [
            control_images(given, request)
            for given in self.controls.each("control_image", request.control_image)
        ]
        start = StartImage.of(request)
        width, height = controls[0][0][0].size
        own = OwnSize((height, width)) if start is None else OwnSize(start.size, "image")
        return ImageInputs(controls, start), own

    def _start(
        self, request: Request, inputs: ImageInputs, height: int, width: int, guard: MemoryGuard
    ) -> Denoising:
        size, generator = (height, width), generator_of(request)
        larger = None if request.upscale is None else self._larger(size, request.upscale)
        if inputs.start is not None:
            return self._from_image(request, inputs, size, larger, generator, guard)
        sampler = self.sampler(request)
        later = self._shortened(request) if larger is not None else None
        run = _Pass(request, inputs, size, sampler, generator, later=_count(later))
        noise = self.noise(request, self._shape(request, size), generator)
        begun = self._beginner.of_noise(sampler, noise, size, generator)
        if larger is None or later is None:
            return self._denoising(run, begun, guard)
        second = _Pass(request, inputs, larger, later, generator, earlier=_count(sampler))
        return self._denoising(run, begun, guard, partial(self._second, second))

    def _from_image(
        self,
        request: Request,
        inputs: ImageInputs,
        size: Size,
        larger: Size | None,
        generator: TorchGenerator,
        guard: MemoryGuard,
    ) -> Denoising:
        """Return a run from an image; with ``upscale`` from the enlarged one."""
        start, tiles = inputs.start, self.tiles(request.vae_tiling)
        assert start is not None
        run = _Pass(request, inputs, larger or size, self._shortened(request), generator)
        if larger is not None and request.upscale_mode == "latent":
            latents = self._beginner.encode(start, size, generator, tiles)
            return self._denoising(run, self._of_latents(run, latents), guard)
        shape = self._shape(request, run.size)
        begun = self._beginner.of_image(request, run.sampler, shape, run.size, generator, start, tiles)
        return self._denoising(run, begun, guard)

    def _second(self, run: _Pass, latents: FloatArray) -> Denoising:
        """Return the run from the enlarged result of the first one."""
        request, tiles, guard = run.request, self.tiles(run.request.vae_tiling), self._guard(*run.size)
        with guard.watch():
            if request.upscale_mode == "latent":
                return self._denoising(run, self._of_latents(run, latents), guard)
            # of 8 bits, as an image that is passed from one pipeline to the next
            images = list(self.images(latents, request.chunk, request.vae_tiling))
            resized = [image.resize(run.size[::-1], Image.Resampling.LANCZOS) for image in images]
            start, shape = StartImage([(image,) for image in resized]), self._shape(request, run.size)
            begun = self._beginner.of_image(
                request, run.sampler, shape, run.size, run.generator, start, tiles
            )
            return self._denoising(run, begun, guard)

    def _of_latents(self, run: _Pass, latents: FloatArray) -> Beginning:
        """Return the beginning of a run from enlarged latents."""
        count, _, height, width = self._shape(run.request, run.size)
        enlarged = np.repeat(resize_bilinear(latents, (height, width)), count // len(latents), axis=0)
        return self._beginner.of_latents(run.sampler, enlarged, run.size, run.generator)

    def _larger(self, size: Size, factor: float) -> Size:
        return self._warned(enlarged_size(self.family, self._config, size, factor))

    def _shortened(self, request: Request) -> Sampler:
        """Return the sampler of a run from an image."""
        place = self._beginner.first_place(self.sampler(request), request.strength)
        return self.sampler(request, place)

    def _denoising(
        self,
        run: _Pass,
        begun: Beginning,
        guard: MemoryGuard,
        then: Callable[[FloatArray], Denoising] | None = None,
    ) -> Denoising:
        """Return a run that is about to take its first step."""
        request, size, count = run.request, run.size, len(begun.latents)
        guidance = self.family.default_guidance if request.guidance_scale is None else request.guidance_scale
        steps = _count(run.sampler)
        guided = self.guided_steps(request, steps, count) if is_guided(guidance, self.inputs) else 0
        halves = 2 if guided else 1
        scales = [control_scale(scale, request) for scale in self.controls.each_scale(request.control_scale)]
        arrays = run.inputs.control_arrays(*size)
        loras = self._loras.choose(request.lora, request.prompt_count)
        prompts = self._condition(request, guided > 0, loras)
        image_prompts = self._image_prompts(request, guided > 0)
        constants = {
            **prompts,
            **image_prompts.feed,
            **self.conditioning(*size, halves * count),
            **embedding_input(self.inputs, guidance, count),
            **{name: np.concatenate([rows] * halves) for name, rows in begun.inputs.items()},
            **self.controls.images([for_every_row(own, request, halves) for own in arrays]),
            **loras.inputs(self.family.denoiser, request.num_images_per_prompt, halves),
        }
        tokens = prompts["encoder_hidden_states"].shape[1]
        rows = {"batch": halves * count, "sequence": tokens, **image_prompts.sizes}
        open_step_cache(self.bundle, request.cache_interval, size, [rows])
        part = StepPart(self.denoiser(constants), (*size, tokens, *image_prompts.sizes.values()))
        return ImageDenoising(
            sampler=run.sampler,
            latents=begun.latents,
            generator=run.generator,
            parts=[part],
            guided_steps=guided,
            guard=guard,
            cache_interval=request.cache_interval,
            earlier=run.earlier,
            later=run.later,
            then=then,
            strengths=self.controls.schedules(scales, request, steps, guided),
            guidance=float(guidance),
            outside=begun.outside,
            step_end=latents_after_step(self, request),
        )

    def _shape(self, request: Request, size: Size) -> tuple[int, ...]:
        """Return the shape of a request's latents at a size in pixels."""
        factor, channels = self.family.vae_factor, self.inputs["sample"].shape[1]
        assert isinstance(channels, int)
        count = request.prompt_count * request.num_images_per_prompt
        return (count, channels, *(side // factor for side in size))

    def result_images(self, request: Request, latents: FloatArray) -> Iterator[Image.Image]:
        """Yield the PIL images of a request's result one by one, put into the image that it started from if
        that was asked for."""
        return self._put_back(request, super().result_images(request, latents), latents)

    def _put_back(
        self, request: Request, images: Iterator[Image.Image], latents: FloatArray
    ) -> Iterator[Image.Image]:
        start = StartImage.of(request) if request.puts_back else None
        if start is None:
            return images
        height, width = (self.family.vae_factor * side for side in latents.shape[-2:])
        return start.overlaid(images, height, width, request.num_images_per_prompt)

    def _images(self, request: Request, latents: FloatArray) -> Any:
        images = super()._images(request, latents)
        return list(self._put_back(request, iter(images), latents)) if request.puts_back else images


def _count(sampler: Sampler | None) -> int:
    """Return the number of steps that a sampler takes."""
    return 0 if sampler is None else len(sampler.timesteps) - sampler.begin
