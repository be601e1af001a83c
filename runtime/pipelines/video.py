"""Clips from a reference image and a control clip, in windows where they are long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from controlnext.runtime.denoise import Step
from controlnext.runtime.pipelines.decoding import Images
from controlnext.runtime.pipelines.diffusers_names import CLIP_ARGUMENTS, tells_names
from controlnext.runtime.pipelines.video_runs import VideoRuns
from controlnext.runtime.request import Scale, VideoRequest
from controlnext.runtime.step_end import LATENTS, StepEnd
from controlnext.types import FloatArray


@dataclass(frozen=True)
class VideoOutput:
    """The result of a call.

    Attributes:
        frames: clips of PIL images; with output type "np" (1, F, H, W, 3) float32 in [0, 1]; with "latent"
            None.
        latents: (1, F, C, H/8, W/8) float32 as the last step left them, not unscaled for the VAE.
    """

    frames: list[list[Image.Image]] | FloatArray | None
    latents: FloatArray


class VideoPipeline(VideoRuns, task="video"):
    """A pipeline that makes clips: Stable Video Diffusion (arXiv:2311.15127) with a control for every frame.

    A guided batch has the unconditional half first: zeros for the image's embedding and latents, and the
    control scale that the variant gives it. Guidance grows linearly over the frames. The memory of a step
    depends on the window, not on the clip; only the latents grow with the clip.

    The arguments below are those of a call; None means the default in brackets. For a bundle of several
    controls ``control_images`` is a list of clips, one for each control, and ``control_scale`` a number for
    all controls or a list of numbers.

    Args:
        image: the reference image, which the clip shows moving: a PIL image of any mode, an array
            (height, width, 3) of uint8 or of floats in [0, 1], or anything else that
            :class:`~controlnext.image_input.ImageReader` takes.
        control_images: the control's clip: a sequence of images or an array (frames, height, width, 3).
            Anything with a length and an index will do: frames are read when they are needed, so that a
            long clip need not be in memory.
        control_scale: strength of the control; 0 switches it off. One number for the clip.
        num_inference_steps: number of sampling steps, at least 1 (the family's default).
        sigmas: noise levels of the steps, highest first, and the one after the last, in place of their
            number.
        height, width: size of the result in pixels, multiples of 8, for some families of 16 (those of
            ``latents`` if they are given, else of the first control image, rounded down).
        seed: start of the random numbers, as in ``torch.Generator("cpu").manual_seed(seed)``.
        sampler: name of a sampler of the family (the family's default).
        latents: (1, frames, C, height/8, width/8), noise of unit variance, in place of the seed's;
            anything that NumPy turns into an array.
        control_start, control_end: the part of the run, from 0 to 1, in which the control acts.
        guidance_end: the part of the run, from 0 to 1, after which guidance ends: the other steps compute the
            conditional half alone.
        output_type: "pil", "np" or "latent".
        vae_tiling: not supported for clips; must be False.
        cache_interval: the whole denoiser runs at every step of that number, its shallow part between, which
            is faster (docs/fewer.md); 1: at every step.
        generator: a seeded NumPy or torch generator in place of ``seed``.
        callback_on_step_end: is called after each step with pipeline, step, timestep and tensors by name; it
            may return ``{"latents": ...}`` to go on with.
        callback_on_step_end_tensor_inputs: the names of these tensors, of which there is ``latents``.
        num_frames: number of frames of the result, at least 1 (those of the control clip).
        frames_per_batch, overlap: a longer clip is denoised in windows of ``frames_per_batch`` frames;
            neighbours share ``overlap`` frames.
        min_guidance_scale, max_guidance_scale: guidance of the first and of the last frame, linear between,
            also where the first is the larger; no guidance if the second is less than 1 (the family's default
            for the second).
        noise_aug_strength: deviation of the noise that is added to the reference image, from 0 to 10.
        decode_chunk_size: number of frames decoded at a time (those of a window). Frames decoded together
            influence each other, so this changes the result.

    Raises:
        InputError: a value that no model could take, or that this bundle cannot.
        WorkError: an engine fails, or a number overflows.
        OutOfMemoryError: memory runs out.
    """

    request = VideoRequest
    memory_savers = ("frames_per_batch", "decode_chunk_size", "offload")

    @tells_names(CLIP_ARGUMENTS)
    def __call__(
        self,
        image: Any = None,
        control_images: Any = None,
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
        generator: Any = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
        num_frames: int | None = None,
        frames_per_batch: int = 14,
        overlap: int = 4,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float | None = None,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
    ) -> VideoOutput:
        """Return a clip of a reference image and a control clip; the class describes arguments and errors."""
        request = VideoRequest(
            image=image,
            control_images=control_images,
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
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            num_frames=num_frames,
            frames_per_batch=frames_per_batch,
            overlap=overlap,
            min_guidance_scale=min_guidance_scale,
            max_guidance_scale=max_guidance_scale,
            noise_aug_strength=noise_aug_strength,
            decode_chunk_size=decode_chunk_size,
        )
        return self._run(request)

    @tells_names(CLIP_ARGUMENTS)
    def stream(
        self,
        image: Any = None,
        control_images: Any = None,
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
        generator: Any = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
        num_frames: int | None = None,
        frames_per_batch: int = 14,
        overlap: int = 4,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float | None = None,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
    ) -> Iterator[Step]:
        """Yield the steps of such a call one by one; see :meth:`Pipeline.stream`."""
        request = VideoRequest(
            image=image,
            control_images=control_images,
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
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            num_frames=num_frames,
            frames_per_batch=frames_per_batch,
            overlap=overlap,
            min_guidance_scale=min_guidance_scale,
            max_guidance_scale=max_guidance_scale,
            noise_aug_strength=noise_aug_strength,
            decode_chunk_size=decode_chunk_size,
        )
        return self.steps(request)

    def finish(self, request: VideoRequest, latents: FloatArray) -> VideoOutput:
        """Return what a call returns for the latents of the last step."""
        return VideoOutput(self._images(request, latents), latents)

    def _arrange(self, images: Any) -> Images:
        return [images] if isinstance(images, list) else images[None]
