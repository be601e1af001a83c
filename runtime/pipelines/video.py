"""Clips from a reference picture and a control clip, in windows where they are long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image

from controlnext.errors import InputError, blames
from controlnext.image_input import Bands, ImageReader
from controlnext.runtime.denoise import Step, denoise, guide
from controlnext.runtime.image_processing import clip_pixels
from controlnext.runtime.pipelines.base import Pictures, Task
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import VideoRequest, as_floats
from controlnext.runtime.sizes import Size
from controlnext.runtime.vae import control_array, read_pictures
from controlnext.types import FloatArray
from controlnext.windows import Window, clip_windows


@dataclass(frozen=True)
class VideoOutput:
    """What a call gives.

    Attributes:
        frames: clips of PIL images; with output type "np" (1, F, H, W, 3) float32 in [0, 1]; with "latent"
            None.
        latents: (1, F, C, H/8, W/8) float32 as the last step left them, not unscaled for the VAE.
    """

    frames: list[list[Image.Image]] | FloatArray | None
    latents: FloatArray


class VideoTask(Task):
    """Stable Video Diffusion's sampling (arXiv:2311.15127) with a control for every frame.

    A guided batch has the unconditional half first: zeros for the picture's embedding and latents, and the
    control scale that the variant gives it. Guidance grows linearly over the frames. What a step needs in
    memory depends on the window, not on the clip, but for the latents.
    """

    request = VideoRequest
    output = VideoOutput
    memory_savers = ("frames_per_batch", "decode_chunk_size", "offload")

    def _read(self, request: VideoRequest) -> tuple[list[Clip], Size]:
        clips = [Clip(given) for given in self.per_control("control_images", request.control_images)]
        return clips, clips[0].size

    def _start(self, request: VideoRequest, clips: list[Clip], height: int, width: int) -> Iterator[Step]:
        sampler = self.sampler(request)
        generator = TorchGenerator(request.seed)
        frames = _frame_count(request, clips)
        windows = clip_windows(frames, request.frames_per_batch, request.overlap)
        low, high = request.min_guidance_scale, request.max_guidance_scale
        high = self.family.default_guidance if high is None else high
        guided = high >= 1
        guidance = np.linspace(low, high, frames, dtype=np.float32).reshape(1, frames, 1, 1, 1)
        scales = [as_floats("control_scale", s) for s in self.scales_per_control(request.control_scale)]
        strengths = self.schedules(
            [_single(scale) for scale in scales], request, len(sampler.timesteps), guided
        )
        picture, constants = self._picture(request, height, width, guided, generator)
        factor = self.family.vae_factor
        shape = (1, frames, picture.shape[1], height // factor, width // factor)
        latents = self.noise(request, shape, generator)

        control = partial(self._control, clips, height, width)
        # several windows do not fit into the memory that one needs
        single = control(windows[0]) if len(windows) == 1 else {}
        denoiser = self.denoiser({**constants, **single})

        def noise_of(sample: FloatArray, timestep: float, window: Window) -> FloatArray:
            part = slice(window.start, window.stop)
            rows = np.concatenate([sample[:, part]] * len(picture))
            still = np.broadcast_to(picture[:, None], rows.shape)
            changing = {
                "sample": np.concatenate([rows, still], axis=2),
                "timestep": np.full(len(rows), timestep, np.float32),
            }
            noise = denoiser.run(changing if single else {**changing, **control(window)})["noise_pred"]
            return guide(noise, guidance[:, part] if guided else None)

        def predict(sample: FloatArray, timestep: float, index: int) -> FloatArray:
            if index in strengths:
                denoiser.set_inputs(strengths[index])
            total, count = np.zeros_like(sample), np.zeros((1, frames, 1, 1, 1), np.float32)
            for window in windows:
                noise = noise_of(sample, timestep, window)
                total[:, window.first : window.stop] += noise[:, window.first - window.start :]
                count[:, window.first : window.stop] += 1
            return total / count

        return denoise(predict, sampler, latents * np.float32(sampler.init_noise_sigma), generator)

    def _control(self, clips: list[Clip], height: int, width: int, window: Window) -> dict[str, FloatArray]:
        """The control inputs of a window: its first frame is the clip's."""
        numbers = [0, *range(window.start + 1, window.stop)]
        arrays = [clip.array(numbers, height, width) for clip in clips]
        return {f"control_image{suffix}": a for suffix, a in zip(self.controls, arrays, strict=True)}

    def arrange(self, pictures: Any) -> Pictures:
        return [pictures] if isinstance(pictures, list) else pictures[None]

    def _picture(
        self, request: VideoRequest, height: int, width: int, guided: bool, generator: TorchGenerator
    ) -> tuple[FloatArray, dict[str, np.ndarray]]:
        """The reference picture as latents (rows, C, h, w), and the inputs that stay the same."""
        bundle, options = self.bundle, self.bundle.manifest.options
        (pixels,) = bundle.manifest.graphs["image_encoder"].inputs
        with blames("image"):
            bands = _picture("image", request.image, ImageReader("image"))
            (own,) = control_array([bands], *bands[0].size[::-1])
            clip = clip_pixels(own, options["image_mean"], options["image_std"], int(pixels.shape[-1]))
        embedding = bundle.engine("image_encoder").run({pixels.name: clip})["image_embeds"]
        sample = control_array([bands], height, width) * np.float32(2) - np.float32(1)
        sample = sample + np.float32(request.noise_aug_strength) * generator.randn(sample.shape)
        parameters = bundle.engine("vae_encoder").run({"sample": sample})["latent_parameters"]
        mean = np.split(parameters, 2, axis=1)[0]
        if guided:
            mean, embedding = (np.concatenate([np.zeros_like(a), a]) for a in (mean, embedding))
        constants = self.conditioning(height, width, len(mean))
        return mean, {**constants, "encoder_hidden_states": embedding[:, None]}


class Clip:
    """The pictures of a control clip, read when they are needed; the last few are kept."""

    def __init__(self, given: Any) -> None:
        if given is None or not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
            raise InputError(
                "no control clip was given; give control_images, a sequence of pictures",
                argument="control_images",
            )
        if isinstance(given, np.ndarray) and given.ndim != 4:
            raise InputError(
                f"control_images is an array of shape {given.shape}; give (frames, height, width, 3)",
                argument="control_images",
            )
        if not len(given):
            raise InputError(
                "control_images is empty; give one picture for every frame", argument="control_images"
            )
        self._given, self._reader = given, ImageReader("the clip in control_images", one_ground=True)
        # of the pictures, not of this object: it would keep itself alive, and the last frames with it
        read = partial(_frame_array, given, self._reader)
        self._frame = lru_cache(maxsize=2 * VideoRequest.frames_per_batch)(read)

    def __len__(self) -> int:
        return len(self._given)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first picture."""
        width, height = _frame_bands(self._given, self._reader, 0)[0].size
        return height, width

    def array(self, numbers: list[int], height: int, width: int) -> FloatArray:
        """(1, frames, 3, height, width) float32 in [0, 1] of the frames of these numbers."""
        return np.stack([self._frame(number, height, width) for number in numbers])[None]


def _frame_array(clip: Any, reader: ImageReader, number: int, height: int, width: int) -> FloatArray:
    return control_array([_frame_bands(clip, reader, number)], height, width)[0]


def _frame_bands(clip: Any, reader: ImageReader, number: int) -> Bands:
    with blames("control_images"):
        return _picture(f"frame {number} of control_images", clip[number], reader)


def _picture(name: str, given: Any, reader: ImageReader) -> Bands:
    """The one picture ``given``; errors call it ``name``."""
    try:
        pictures = read_pictures(given, reader)
    except InputError as error:
        raise InputError(f"{name}: {error}", argument=error.argument) from error
    if len(pictures) > 1:
        raise InputError(f"{name} holds {len(pictures)} pictures; give one")
    return pictures[0]


def _frame_count(request: VideoRequest, clips: list[Clip]) -> int:
    shortest = min(len(clip) for clip in clips)
    frames = shortest if request.num_frames is None else request.num_frames
    if frames > shortest:
        raise InputError(
            f"num_frames is {frames}, the control has {shortest}; give a picture for every frame",
            argument="num_frames",
        )
    return frames


def _single(scale: FloatArray) -> FloatArray:
    if scale.size != 1:
        raise InputError(
            f"control_scale has shape {scale.shape}; give one number for the clip", argument="control_scale"
        )
    return scale.reshape(1)
