"""Clips from a reference image and a control clip, in windows where they are long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from controlnext.errors import InputError, blames
from controlnext.image_input import ImageReader
from controlnext.runtime.denoise import Denoising, Step
from controlnext.runtime.image_processing import preprocess_for_clip
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.pipelines.clip import Clip, frame_count, read_one
from controlnext.runtime.pipelines.clip_denoising import ClipDenoising
from controlnext.runtime.pipelines.decoding import Images
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import Scale, VideoRequest, as_floats
from controlnext.runtime.sizes import OwnSize
from controlnext.runtime.step_cache import open_step_cache
from controlnext.runtime.step_parts import StepPart
from controlnext.runtime.vae import control_array
from controlnext.types import FloatArray
from controlnext.windows import Window, clip_windows


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


class VideoPipeline(Pipeline, task="video"):
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
            num_frames=num_frames,
            frames_per_batch=frames_per_batch,
            overlap=overlap,
            min_guidance_scale=min_guidance_scale,
            max_guidance_scale=max_guidance_scale,
            noise_aug_strength=noise_aug_strength,
            decode_chunk_size=decode_chunk_size,
        )
        return self._run(request)

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
        num_frames: int | None = None,
        frames_per_batch: int = 14,
        overlap: int = 4,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float | None = None,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
    ) -> Iterator[Step]:
        """Yield the steps of such a call one by one; the arguments are those of the call.

        They are checked before this returns. :meth:`decode` turns any step's latents into a clip; those of
        the last step are the result.
        """
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
            num_frames=num_frames,
            frames_per_batch=frames_per_batch,
            overlap=overlap,
            min_guidance_scale=min_guidance_scale,
            max_guidance_scale=max_guidance_scale,
            noise_aug_strength=noise_aug_strength,
            decode_chunk_size=decode_chunk_size,
        )
        return self.steps(request)

    def _read(self, request: VideoRequest) -> tuple[list[Clip], OwnSize]:
        clips = [Clip(given) for given in self.controls.each("control_images", request.control_images)]
        return clips, OwnSize(clips[0].size)

    def _start(
        self, request: VideoRequest, clips: list[Clip], height: int, width: int, guard: MemoryGuard
    ) -> Denoising:
        sampler = self.sampler(request)
        generator = TorchGenerator(request.seed)
        frames = frame_count(request, clips)
        windows = clip_windows(frames, request.frames_per_batch, request.overlap)
        low, high = request.min_guidance_scale, request.max_guidance_scale
        high = self.family.default_guidance if high is None else high
        guidance = np.linspace(low, high, frames, dtype=np.float32).reshape(1, frames, 1, 1, 1)
        scales = [as_floats("control_scale", s) for s in self.controls.each_scale(request.control_scale)]
        steps = len(sampler.timesteps)
        guided = self.guided_steps(request, steps, 1) if high >= 1 else 0
        strengths = self.controls.schedules([_single(scale) for scale in scales], request, steps, guided)
        sizes = [{"batch": 2 if guided else 1, "frames": window.stop - window.start} for window in windows]
        open_step_cache(self.bundle, request.cache_interval, (height, width), sizes)
        image, constants = self._image(request, height, width, guided > 0, generator)
        factor = self.family.vae_factor
        shape = (1, frames, image.shape[1], height // factor, width // factor)
        latents = self.noise(request, shape, generator) * np.float32(sampler.init_noise_sigma)

        control = partial(self._control, clips, height, width)
        # several windows do not fit into the memory that one needs
        single = control(windows[0]) if len(windows) == 1 else {}
        denoiser = self.denoiser({**constants, **single})
        parts = [StepPart(denoiser, (height, width, w.stop - w.start)) for w in windows]
        return ClipDenoising(
            sampler=sampler,
            latents=latents,
            generator=generator,
            parts=parts,
            guided_steps=guided,
            guard=guard,
            cache_interval=request.cache_interval,
            windows=windows,
            image=image,
            strengths=strengths,
            guidance=guidance,
            control=None if single else control,
        )

    def finish(self, request: VideoRequest, latents: FloatArray) -> VideoOutput:
        """Return what a call returns for the latents of the last step."""
        return VideoOutput(self._images(request, latents), latents)

    def _control(self, clips: list[Clip], height: int, width: int, window: Window) -> dict[str, FloatArray]:
        """Return the control inputs of a window; the first frame is always that of the clip."""
        numbers = [0, *range(window.start + 1, window.stop)]
        return self.controls.images([clip.array(numbers, height, width) for clip in clips])

    def _arrange(self, images: Any) -> Images:
        return [images] if isinstance(images, list) else images[None]

    def _image(
        self, request: VideoRequest, height: int, width: int, guided: bool, generator: TorchGenerator
    ) -> tuple[FloatArray, dict[str, np.ndarray]]:
        """Return the reference image as latents (rows, C, h, w), and the inputs constant over the steps."""
        bundle, options = self.bundle, self.bundle.manifest.options
        (pixels,) = bundle.manifest.graphs["image_encoder"].inputs
        with blames("image"):
            bands = read_one("image", request.image, ImageReader("image"))
            (own,) = control_array([bands], *bands[0].size[::-1])
            clip = preprocess_for_clip(
                own, options["image_mean"], options["image_std"], int(pixels.shape[-1])
            )
        embedding = bundle.engine("image_encoder").run({pixels.name: clip})["image_embeds"]
        sample = control_array([bands], height, width) * np.float32(2) - np.float32(1)
        sample = sample + np.float32(request.noise_aug_strength) * generator.randn(sample.shape)
        parameters = bundle.engine("vae_encoder").run({"sample": sample})["latent_parameters"]
        mean = np.split(parameters, 2, axis=1)[0]
        if guided:
            mean, embedding = (np.concatenate([np.zeros_like(a), a]) for a in (mean, embedding))
        constants = self.conditioning(height, width, len(mean))
        return mean, {**constants, "encoder_hidden_states": embedding[:, None]}


def _single(scale: FloatArray) -> FloatArray:
    if scale.size != 1:
        raise InputError(
            f"control_scale has shape {scale.shape}; give one number for the clip", argument="control_scale"
        )
    return scale.reshape(1)
