"""Images from prompts and control images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from controlnext.image_input import Bands
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.conditioning import Conditioner
from controlnext.runtime.denoise import Denoising, Step, StepPart
from controlnext.runtime.guidance import embedding_input, is_guided
from controlnext.runtime.image_prompts import ImagePrompts
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.pipelines.decoding import Images
from controlnext.runtime.pipelines.image_controls import control_images, control_scale, for_every_row
from controlnext.runtime.pipelines.image_denoising import ImageDenoising
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import Prompt, Request, Scale, Scales
from controlnext.runtime.sizes import Size
from controlnext.runtime.step_cache import open_step_cache
from controlnext.runtime.vae import control_array
from controlnext.types import FloatArray


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
        timesteps, sigmas: the training timesteps of the steps, or their noise levels, highest first, in place
            of their number; as in diffusers, for some samplers.
        height, width: size of the result in pixels, multiples of 8, for some families of 16 (those of
            ``latents`` if they are given, else of the first control image, rounded down).
        seed: start of the random numbers, as in ``torch.Generator("cpu").manual_seed(seed)``.
        sampler: name of a sampler of the family (the family's default).
        latents: (N, C, height/8, width/8), noise of unit variance, in place of the seed's;
            anything that NumPy turns into an array.
        control_start, control_end: the part of the run, from 0 to 1, in which the control acts.
        guidance_end: the part of the run, from 0 to 1, after which guidance ends: the other steps compute the
            conditional half alone.
        output_type: "pil", "np" or "latent".
        vae_tiling: decode in overlapping tiles, for large images: less memory, but colours may shift
            from tile to tile.
        cache_interval: the whole denoiser runs at every step of that number, its shallow part between, which
            is faster (docs/fewer.md); 1: at every step.
        guidance_scale: classifier-free guidance; none at 1 or less (the family's default). A distilled model
            that takes it as an input computes no unconditional half.
        num_images_per_prompt: number of images for each prompt, at least 1.
        lora: scales of LoRAs by the names that :meth:`add_lora` gave them; or a list of these, one for each
            prompt.
        ip_adapter_image: an image prompt, or several that act together; for several IP-Adapters a list of
            these (docs/image-prompts.md). For several prompts also a list of lists, one for each prompt.
        ip_adapter_image_embeds: the same as the image encoder reads them, as in diffusers: (1 or N, images,
            ...), with guidance the unconditional half first.
        ip_adapter_scale: strength of the image prompt; one, or one for each prompt; for several IP-Adapters
            one for all, or a list.
        prompt_embeds, negative_prompt_embeds: (N, tokens, width) float32 instead of the prompts.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: (N, width) float32, for families that use
            pooled embeddings.

    Raises:
        InputError: a value that no model could take, or that this bundle cannot.
        WorkError: an engine fails, or a number overflows.
        OutOfMemoryError: memory runs out.
    """

    request = Request
    memory_savers = ("vae_tiling", "offload")

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._condition = Conditioner(bundle)
        self._image_prompts = ImagePrompts(bundle)

    def __call__(
        self,
        prompt: Prompt | None = None,
        negative_prompt: Prompt | None = None,
        control_image: Any = None,
        *,
        control_scale: Scale | Sequence[Scale] = 1.0,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | FloatArray | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        latents: FloatArray | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        guidance_end: float = 1.0,
        output_type: str = "pil",
        vae_tiling: bool = False,
        cache_interval: int = 1,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: FloatArray | Sequence[FloatArray] | None = None,
        ip_adapter_scale: Scale | Sequence[Scale] = 1.0,
        timesteps: Sequence[int] | FloatArray | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        lora: Scales | Sequence[Scales | None] | None = None,
        prompt_embeds: FloatArray | None = None,
        negative_prompt_embeds: FloatArray | None = None,
        pooled_prompt_embeds: FloatArray | None = None,
        negative_pooled_prompt_embeds: FloatArray | None = None,
    ) -> Output:
        """Return the images of prompts and control images; the class describes arguments and errors."""
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            control_image=control_image,
            control_scale=control_scale,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            height=height,
            width=width,
            seed=seed,
            sampler=sampler,
            latents=latents,
            control_start=control_start,
            control_end=control_end,
            guidance_end=guidance_end,
            output_type=output_type,
            vae_tiling=vae_tiling,
            timesteps=timesteps,
            cache_interval=cache_interval,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            lora=lora,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            ip_adapter_scale=ip_adapter_scale,
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
        sigmas: Sequence[float] | FloatArray | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        latents: FloatArray | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        guidance_end: float = 1.0,
        output_type: str = "pil",
        vae_tiling: bool = False,
        cache_interval: int = 1,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: FloatArray | Sequence[FloatArray] | None = None,
        ip_adapter_scale: Scale | Sequence[Scale] = 1.0,
        timesteps: Sequence[int] | FloatArray | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        lora: Scales | Sequence[Scales | None] | None = None,
        prompt_embeds: FloatArray | None = None,
        negative_prompt_embeds: FloatArray | None = None,
        pooled_prompt_embeds: FloatArray | None = None,
        negative_pooled_prompt_embeds: FloatArray | None = None,
    ) -> Iterator[Step]:
        """Yield the steps of such a call one by one; see :meth:`Pipeline.stream`."""
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            control_image=control_image,
            control_scale=control_scale,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            height=height,
            width=width,
            seed=seed,
            sampler=sampler,
            latents=latents,
            control_start=control_start,
            control_end=control_end,
            guidance_end=guidance_end,
            output_type=output_type,
            vae_tiling=vae_tiling,
            timesteps=timesteps,
            cache_interval=cache_interval,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            lora=lora,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            ip_adapter_scale=ip_adapter_scale,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )
        return self.steps(request)

    def _read(self, request: Request) -> tuple[list[list[Bands]], Size]:
        controls = [
            control_images(given, request)
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
        steps = len(sampler.timesteps)
        guided = self.guided_steps(request, steps, len(latents)) if is_guided(guidance, self.inputs) else 0
        halves = 2 if guided else 1
        scales = [control_scale(scale, request) for scale in self.controls.each_scale(request.control_scale)]
        strengths = self.controls.schedules(scales, request, steps, guided)
        images = [for_every_row(control_array(own, height, width), request, halves) for own in controls]
        loras = self._loras.choose(request.lora, request.prompt_count)
        prompts = self._condition(request, guided > 0, loras)
        image_prompts = self._image_prompts(request, guided > 0)
        constants = {
            **prompts,
            **image_prompts.feed,
            **self.conditioning(height, width, halves * len(latents)),
            **embedding_input(self.inputs, guidance, len(latents)),
            **self.controls.images(images),
            **loras.inputs(family.denoiser, request.num_images_per_prompt, halves),
        }
        tokens = prompts["encoder_hidden_states"].shape[1]
        rows = {"batch": halves * len(latents), "sequence": tokens, **image_prompts.sizes}
        open_step_cache(self.bundle, request.cache_interval, (height, width), [rows])
        part = StepPart(self.denoiser(constants), (height, width, tokens, *image_prompts.sizes.values()))
        return ImageDenoising(
            sampler=sampler,
            latents=latents,
            generator=generator,
            parts=[part],
            guided_steps=guided,
            guard=guard,
            cache_interval=request.cache_interval,
            strengths=strengths,
            guidance=float(guidance),
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
