"""The run of a request for a clip: its windows, its reference image, its controls."""

from __future__ import annotations

from functools import partial

import numpy as np

from controlnext.errors import InputError, blames
from controlnext.image_input import ImageReader
from controlnext.runtime.denoise import Denoising
from controlnext.runtime.image_processing import preprocess_for_clip
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.pipelines.clip import Clip, frame_count, read_one
from controlnext.runtime.pipelines.clip_denoising import ClipDenoising
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import VideoRequest, as_floats
from controlnext.runtime.sizes import OwnSize
from controlnext.runtime.step_cache import open_step_cache
from controlnext.runtime.step_end import generator_of, latents_after_step
from controlnext.runtime.step_parts import StepPart
from controlnext.runtime.vae import control_array
from controlnext.types import FloatArray
from controlnext.windows import Window, clip_windows


class VideoRuns(Pipeline):
    """The part of the video pipeline that begins a run."""

    def _read(self, request: VideoRequest) -> tuple[list[Clip], OwnSize]:
        clips = [Clip(given) for given in self.controls.each("control_images", request.control_images)]
        return clips, OwnSize(clips[0].size)

    def _start(
        self, request: VideoRequest, clips: list[Clip], height: int, width: int, guard: MemoryGuard
    ) -> Denoising:
        sampler = self.sampler(request)
        generator = generator_of(request)
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
            step_end=latents_after_step(self, request),
            windows=windows,
            image=image,
            strengths=strengths,
            guidance=guidance,
            control=None if single else control,
        )

    def _control(self, clips: list[Clip], height: int, width: int, window: Window) -> dict[str, FloatArray]:
        """Return the control inputs of a window; the first frame is always that of the clip."""
        numbers = [0, *range(window.start + 1, window.stop)]
        return self.controls.images([clip.array(numbers, height, width) for clip in clips])

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
