"""Pictures from prompts and control pictures."""

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
from controlnext.runtime.denoise import Step, denoise, guide
from controlnext.runtime.pipelines.base import Pictures, Task
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import Request, as_floats
from controlnext.runtime.sizes import Size
from controlnext.runtime.vae import control_array, read_pictures
from controlnext.types import FloatArray


@dataclass(frozen=True)
class Output:
    """What a call gives.

    Attributes:
        images: PIL images; with output type "np" (N, H, W, 3) float32 in [0, 1]; with "latent" None.
        latents: (N, C, H/8, W/8) float32 as the last step left them, not unscaled for the VAE.
    """

    images: list[Image.Image] | FloatArray | None
    latents: FloatArray


class ImageTask(Task):
    """Classifier-free guidance over a batch of prompts, the control applied to both halves."""

    request = Request
    output = Output
    memory_savers = ("vae_tiling", "offload")

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._condition = Conditioner(bundle)

    def _read(self, request: Request) -> tuple[list[list[Bands]], Size]:
        controls = [
            _control_pictures(given, request)
            for given in self.per_control("control_image", request.control_image)
        ]
        width, height = controls[0][0][0].size
        return controls, (height, width)

    def _start(
        self, request: Request, controls: list[list[Bands]], height: int, width: int
    ) -> Iterator[Step]:
        family = self.family
        sampler = self.sampler(request)
        generator = TorchGenerator(request.seed)
        latents = self._latents(request, height, width, generator)
        guidance = family.default_guidance if request.guidance_scale is None else request.guidance_scale
        halves = 2 if guidance > 1 else 1
        scales = [_control_scale(scale, request) for scale in self.scales_per_control(request.control_scale)]
        strengths = self.schedules(scales, request, len(sampler.timesteps), halves == 2)
        constants = {
            **self._condition(request, guided=halves == 2),
            **self.conditioning(height, width, halves * len(latents)),
        }
        for suffix, pictures in zip(self.controls, controls, strict=True):
            control = control_array(pictures, height, width)
            if len(control) > 1:
                control = np.tile(
                    np.repeat(control, request.num_images_per_prompt, axis=0), (halves, 1, 1, 1)
                )
            constants[f"control_image{suffix}"] = control
        denoiser = self.denoiser(constants)

        def predict(sample: FloatArray, timestep: float, index: int) -> FloatArray:
            if index in strengths:
                denoiser.set_inputs(strengths[index])
            rows = np.concatenate([sample] * halves)
            changing = {"sample": rows, "timestep": np.full(len(rows), timestep, np.float32)}
            noise = denoiser.run(changing)["noise_pred"]
            return guide(noise, float(guidance) if halves == 2 else None)

        return denoise(predict, sampler, latents * np.float32(sampler.init_noise_sigma), generator)

    def arrange(self, pictures: Any) -> Pictures:
        return pictures

    def _latents(self, request: Request, height: int, width: int, generator: TorchGenerator) -> FloatArray:
        count, factor = request.prompt_count * request.num_images_per_prompt, self.family.vae_factor
        channels = self.inputs["sample"].shape[1]
        assert isinstance(channels, int)
        return self.noise(request, (count, channels, height // factor, width // factor), generator)


def _control_pictures(given: Any, request: Request) -> list[Bands]:
    if given is None:
        raise InputError(
            "no control picture was given; give control_image (control_scale=0 switches it off)",
            argument="control_image",
        )
    with blames("control_image"):
        pictures = read_pictures(given, ImageReader("control_image"))
    if len(pictures) not in (1, request.prompt_count):
        raise InputError(
            f"{len(pictures)} control pictures were given for {request.prompt_count} prompts; give one, or"
            f" {request.prompt_count}",
            argument="control_image",
        )
    return pictures


def _control_scale(given: float | Sequence[float] | FloatArray, request: Request) -> FloatArray:
    """One scale for every picture, (N,) float32."""
    scale, count = as_floats("control_scale", given), request.prompt_count
    if scale.shape not in ((), (1,), (count,)):
        raise InputError(
            f"control_scale has shape {scale.shape} for {count} prompts; give one, or {count}",
            argument="control_scale",
        )
    return np.repeat(np.broadcast_to(scale, count), request.num_images_per_prompt)
