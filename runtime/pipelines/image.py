"""Images from prompts and control images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from controlnext.runtime.denoise import Step
from controlnext.runtime.pipelines.decoding import Images
from controlnext.runtime.pipelines.diffusers_names import ARGUMENTS, tells_names
from controlnext.runtime.pipelines.image_runs import ImageRuns
from controlnext.runtime.request import Prompt, Request, Scale, Scales
from controlnext.runtime.step_end import LATENTS, StepEnd
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


class ImagePipeline(ImageRuns, task="image"):
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
        image: the image that the run starts from, or one for each prompt, given as ``control_image`` is;
            resized to the result's size, which is by default its own (none: the run starts from noise).
        strength: the part of the run that is taken if it starts from an image, from 0 to 1, which leaves
            nothing of it.
        mask_image: white where the image is made anew, black where it is kept; of the image's size. Denoisers
            that were trained to inpaint take it as an input.
        padding_mask_crop: make only the part around the mask anew, at the result's size, with this many
            pixels besides, and put it back into the image: outside the mask it has the image's pixels.
        overlay: put the result back into the image without such a crop.
        upscale: a factor of the result's size, above 1: the image is enlarged, or without one the result of a
            first run, and a run starts from that.
        upscale_mode: "pixel" (decoded, Lanczos) or "latent" (bilinear).
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
        generator: a seeded NumPy or torch generator in place of ``seed``, or a list with one for each image.
        callback_on_step_end: is called after each step with pipeline, step, timestep and tensors by name; it
            may return ``{"latents": ...}`` to go on with.
        callback_on_step_end_tensor_inputs: the names of these tensors, of which there is ``latents``.
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

    @tells_names(ARGUMENTS)
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
        image: Any = None,
        strength: float = 0.8,
        mask_image: Any = None,
        padding_mask_crop: int | None = None,
        overlay: bool = False,
        upscale: float | None = None,
        upscale_mode: str = "pixel",
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: FloatArray | Sequence[FloatArray] | None = None,
        ip_adapter_scale: Scale | Sequence[Scale] = 1.0,
        generator: Any = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
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
            cache_interval=cache_interval,
            image=image,
            strength=strength,
            mask_image=mask_image,
            padding_mask_crop=padding_mask_crop,
            overlay=overlay,
            upscale=upscale,
            upscale_mode=upscale_mode,
            timesteps=timesteps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            lora=lora,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            ip_adapter_scale=ip_adapter_scale,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )
        return self._run(request)

    @tells_names(ARGUMENTS)
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
        image: Any = None,
        strength: float = 0.8,
        mask_image: Any = None,
        padding_mask_crop: int | None = None,
        overlay: bool = False,
        upscale: float | None = None,
        upscale_mode: str = "pixel",
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: FloatArray | Sequence[FloatArray] | None = None,
        ip_adapter_scale: Scale | Sequence[Scale] = 1.0,
        generator: Any = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
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
            cache_interval=cache_interval,
            image=image,
            strength=strength,
            mask_image=mask_image,
            padding_mask_crop=padding_mask_crop,
            overlay=overlay,
            upscale=upscale,
            upscale_mode=upscale_mode,
            timesteps=timesteps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            lora=lora,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            ip_adapter_scale=ip_adapter_scale,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )
        return self.steps(request)

    def finish(self, request: Request, latents: FloatArray) -> Output:
        """Return what a call returns for the latents of the last step."""
        return Output(self._images(request, latents), latents)

    def _arrange(self, images: Any) -> Images:
        return images
