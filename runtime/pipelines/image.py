"""Images from prompts and control images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from controlnext.errors import InputError, blames
from controlnext.image_input import Bands, ImageReader
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.conditioning import Conditioner
from controlnext.runtime.denoise import Denoising, Step, StepPart, guide
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.pipelines.decoding import Images
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import Prompt, Request, Scale, as_floats
from controlnext.runtime.sizes import Size
from controlnext.runtime.vae import control_array, read_images
from controlnext.types import Feed, FloatArray


@dataclass(frozen=True)
class Output:
    """The result of a call.

    Attributes:
        images: PIL images; with output type "np" (N, H, W, 3) float32 in [0, 1]; with "latent" None.
        latents: (N, C, H/8, W/8) float32 as the last step left them, not unscaled for the VAE.
    """

    images: list[Image.Image] | FloatArray | None
    latents: FloatArray


class ImagePipeline(Pipeline, task="image"):
    """A pipeline that makes images from prompts and control images.

    It samples with classifier-free guidance over a batch of prompts; the control applies to both halves of
    the batch. The arguments below are those of a call; None means the default in brackets. For a bundle of
    several controls ``control_image`` is a list with one entry for each control, and ``control_scale`` a
    number for all controls or such a list.

    Args:
        prompt: text, or a list of texts, one an image.
        negative_prompt: text for all prompts or a list of as many (what the model was trained with for a
            missing one: zeros, or the embedding of the empty text).
        control_image: an image, or one for each prompt: PIL images of any mode, or arrays
            (height, width, 3) of uint8 or of floats in [0, 1], or anything else
            that :class:`~controlnext.image_input.ImageReader` takes. Resized where its size is not
            ``width`` x ``height``.
        control_scale: strength of the control; 0 switches it off. One, or one for each prompt.
        num_inference_steps: number of sampling steps, at least 1 (the family's default).
        height, width: size of the result in pixels, multiples of 8, for some families of 16 (those of
            ``latents`` if they are given, else of the first control image, rounded down).
        seed: start of the random numbers, as in ``torch.Generator("cpu").manual_seed(seed)``.
        sampler: name of a sampler of the family (the family's default).
        latents: (N, C, height/8, width/8), noise of unit variance, in place of the seed's;
            anything that NumPy turns into an array.
        control_start, control_end: the part of the run, from 0 to 1, in which the control acts.
        output_type: "pil", "np" or "latent".
        vae_tiling: decode in overlapping tiles, for large images: less memory, but colours may shift
            from tile to tile.
        guidance_scale: classifier-free guidance; none at 1 or less (the family's default).
        num_images_per_prompt: number of images for each prompt, at least 1.
        prompt_embeds, negative_prompt_embeds: (N, tokens, width) float32 instead of the prompts.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: (N, width) float32, for families that use
            pooled embeddings.
    """

    request = Request
    memory_savers = ("vae_tiling", "offload")

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._condition = Conditioner(bundle)

    def __call__(
        self,
        prompt: Prompt | None = None,
        negative_prompt: Prompt | None = None,
        control_image: Any = None,
        *,
        control_scale: Scale | Sequence[Scale] = 1.0,
        num_inference_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        latents: FloatArray | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        output_type: str = "pil",
        vae_tiling: bool = False,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: FloatArray | None = None,
        negative_prompt_embeds: FloatArray | None = None,
        pooled_prompt_embeds: FloatArray | None = None,
        negative_pooled_prompt_embeds: FloatArray | None = None,
    ) -> Output:
        """Return the images of prompts and control images.

        The class describes the arguments.

        Raises:
            InputError: a value that no model could take, or that this bundle cannot.
            WorkError: an engine fails, or a number overflows.
            OutOfMemoryError: memory runs out.
        """
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            control_image=control_image,
            control_scale=control_scale,
            num_inference_steps=num_inference_steps,
            height=height,
            width=width,
            seed=seed,
            sampler=sampler,
            latents=latents,
            control_start=control_start,
            control_end=control_end,
            output_type=output_type,
            vae_tiling=vae_tiling,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )
        return self._run(request)

    def stream(
        self,
        prompt: Prompt | None = None,
        negative_prompt: Prompt | None = None,
        control_image: Any = None,
        *,
        control_scale: Scale | Sequence[Scale] = 1.0,
        num_inference_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        latents: FloatArray | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        output_type: str = "pil",
        vae_tiling: bool = False,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: FloatArray | None = None,
        negative_prompt_embeds: FloatArray | None = None,
        pooled_prompt_embeds: FloatArray | None = None,
        negative_pooled_prompt_embeds: FloatArray | None = None,
    ) -> Iterator[Step]:
        """Yield the steps of such a call one by one; the arguments are those of the call.

        The arguments are checked and the prompts are encoded before this returns. :meth:`decode` turns any
        step's latents into images; those of the last step are the result.
        """
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            control_image=control_image,
            control_scale=control_scale,
            num_inference_steps=num_inference_steps,
            height=height,
            width=width,
            seed=seed,
            sampler=sampler,
            latents=latents,
            control_start=control_start,
            control_end=control_end,
            output_type=output_type,
            vae_tiling=vae_tiling,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )
        return self.steps(request)

    def _read(self, request: Request) -> tuple[list[list[Bands]], Size]:
        controls = [
            _control_images(given, request)
            for given in self.controls.each("control_image", request.control_image)
        ]
        width, height = controls[0][0][0].size
        return controls, (height, width)

    def _start(
        self, request: Request, controls: list[list[Bands]], height: int, width: int, guard: MemoryGuard
    ) -> Denoising:
        family = self.family
        sampler = self.sampler(request)
        generator = TorchGenerator(request.seed)
        latents = self._latents(request, height, width, generator)
        guidance = family.default_guidance if request.guidance_scale is None else request.guidance_scale
        halves = 2 if guidance > 1 else 1
        scales = [_control_scale(scale, request) for scale in self.controls.each_scale(request.control_scale)]
        strengths = self.controls.schedules(scales, request, len(sampler.timesteps), halves == 2)
        images = [_for_every_row(control_array(own, height, width), request, halves) for own in controls]
        prompts = self._condition(request, guided=halves == 2)
        constants = {
            **prompts,
            **self.conditioning(height, width, halves * len(latents)),
            **self.controls.images(images),
        }
        tokens = prompts["encoder_hidden_states"].shape[1]
        part = StepPart(self.denoiser(constants), (height, width, tokens))
        return _ImageDenoising(
            sampler=sampler,
            latents=latents,
            generator=generator,
            parts=[part],
            guard=guard,
            strengths=strengths,
            guidance=float(guidance) if halves == 2 else None,
        )

    def finish(self, request: Request, latents: FloatArray) -> Output:
        """Return what a call returns for the latents of the last step."""
        return Output(self._images(request, latents), latents)

    def _arrange(self, images: Any) -> Images:
        return images

    def _latents(self, request: Request, height: int, width: int, generator: TorchGenerator) -> FloatArray:
        count, factor = request.prompt_count * request.num_images_per_prompt, self.family.vae_factor
        channels = self.inputs["sample"].shape[1]
        assert isinstance(channels, int)
        return self.noise(request, (count, channels, height // factor, width // factor), generator)


@dataclass(eq=False, kw_only=True)
class _ImageDenoising(Denoising):
    """A run with the control scales of each step, and with or without guidance."""

    strengths: list[dict[str, FloatArray]]
    guidance: float | None

    def _inputs(self, number: int, sample: FloatArray) -> Feed:
        rows = self.parts[number].rows
        return {
            "sample": np.concatenate([sample] * (rows // len(sample))),
            "timestep": np.full(rows, self.timestep, np.float32),
            **self.strengths[self.index],
        }

    def _guided(self, predictions: Sequence[FloatArray]) -> FloatArray:
        (noise,) = predictions
        return guide(noise, self.guidance)


def _control_images(given: Any, request: Request) -> list[Bands]:
    if given is None:
        raise InputError(
            "no control image was given; set `control_image` (`control_scale` 0 switches it off)",
            argument="control_image",
        )
    with blames("control_image"):
        images = read_images(given, ImageReader("control_image"))
    count = request.prompt_count
    if len(images) not in (1, count):
        given_for = "one prompt; give one" if count == 1 else f"{count} prompts; give one, or {count}"
        raise InputError(
            f"{len(images)} control images were given for {given_for}",
            argument="control_image",
        )
    return images


def _for_every_row(images: FloatArray, request: Request, halves: int) -> FloatArray:
    """Return a single control image as it is; repeat several for each row of a guided batch."""
    if len(images) == 1:
        return images
    return np.tile(np.repeat(images, request.num_images_per_prompt, axis=0), (halves, 1, 1, 1))


def _control_scale(given: float | Sequence[float] | FloatArray, request: Request) -> FloatArray:
    """Return one scale for each image, (N,) float32."""
    scale, count = as_floats("control_scale", given), request.prompt_count
    if scale.shape not in ((), (1,), (count,)):
        raise InputError(
            f"control_scale has shape {scale.shape} for {count} prompts; give one, or {count}",
            argument="control_scale",
        )
    return np.repeat(np.broadcast_to(scale, count), request.num_images_per_prompt)
