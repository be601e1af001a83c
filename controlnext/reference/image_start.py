"""Runs that start from an image, by diffusers' pipelines for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from controlnext.image_input import ImageReader
from controlnext.reference.stock import StockPipeline

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Asked:
    """The arguments of a call that say how a run starts from an image."""

    image: Any = None
    strength: float = 0.8
    mask_image: Any = None
    padding_mask_crop: int | None = None
    overlay: bool = False
    upscale: float | None = None
    upscale_mode: str = "pixel"


START_ARGUMENTS = tuple(field.name for field in fields(Asked))


@dataclass(frozen=True)
class Start:
    """The beginning of a run: PIL images, or latents, one for each result; and masks."""

    image: Any
    strength: float
    mask: Any = None
    padding: int | None = None

    @classmethod
    def of(cls, image: Any, strength: float, mask: Any, padding: int | None) -> Start:
        """Return it for images as a call has them."""
        reader = ImageReader("image")
        masks = None if mask is None else _each(mask, lambda one: reader.read_rgb(one).convert("L"))
        return cls(_each(image, reader.read_rgb), strength, masks, padding)

    def resized(self, size: Size) -> Start:
        """Return it with images of this size, for pipelines that take their size from the image."""
        if self.mask is not None or isinstance(self.image, Tensor):
            return self
        return Start(_each(self.image, lambda one: _resized(one, size)), self.strength)

    def crop(self, size: Size) -> tuple[int, int, int, int] | None:
        """Return the part of the image that is made anew, as diffusers finds it."""
        if self.padding is None:
            return None
        region: tuple[int, int, int, int] = VaeImageProcessor.get_crop_region(
            self.mask, size[1], size[0], pad=self.padding
        )
        return region

    def control(self, image: Any, size: Size) -> Any:
        """Return a control image of the whole image as that of the part that is made anew."""
        crop = self.crop(size)
        if crop is None:
            return image
        rgb = _resized(ImageReader("control_image").read_rgb(image), self.image.size[::-1])
        filled: Image.Image = VaeImageProcessor().resize(rgb.crop(crop), *size, resize_mode="fill")
        return filled

    def overlaid(self, images: np.ndarray, size: Size) -> np.ndarray:
        """Return results (N, H, W, 3) in [0, 1] put back into the image, which is one."""
        crop, results = self.crop(size), VaeImageProcessor.numpy_to_pil(images)
        if crop is None:
            results = [_resized(one, self.image.size[::-1]) for one in results]
        put = [VaeImageProcessor().apply_overlay(self.mask, self.image, one, crop) for one in results]
        return VaeImageProcessor.pil_to_numpy(put)


class StartingPipeline(StockPipeline):
    """A stock pipeline with those of diffusers that start from an image."""

    @cached_property
    def inpaints(self) -> bool:
        """Whether the denoiser was trained to inpaint: it takes a mask and the latents of the rest too."""
        config: Any = self.denoiser.config
        return bool(config.in_channels == 2 * self.modules["vae"].config.latent_channels + 1)  # type: ignore[union-attr]

    @cached_property
    def _starting(self) -> dict[bool, Any]:
        spec = self.family.image_start
        assert spec is not None
        return {
            False: self.other_pipeline(spec.image_to_image),
            True: self.other_pipeline(spec.inpaint),
        }

    def white(self, size: Size) -> Start:
        """Return what a run of a denoiser that was trained to inpaint starts from where there is no image."""
        blank = Image.new("RGB", size[::-1])
        return Start(blank, 1.0, Image.new("L", size[::-1], "white"))

    def starting(self, start: Start) -> Any:
        """Return the pipeline for a run."""
        return self._starting[start.mask is not None or self.inpaints]

    def start_arguments(self, start: Start, size: Size) -> dict[str, Any]:
        """Return the arguments of a run's pipeline besides those that all pipelines have."""
        fitted, pipeline = start.resized(size), self.starting(start)
        mask = fitted.mask
        if mask is None and self.inpaints:
            mask = Image.new("L", size[::-1], "white")
        given = {
            "image": fitted.image,
            "strength": fitted.strength,
            "mask_image": mask,
            "padding_mask_crop": fitted.padding,
            "height": size[0],
            "width": size[1],
            # what diffusers asks for where it crops; the result is taken from the last step
            "output_type": "latent" if fitted.padding is None else "pil",
        }
        accepted = inspect.signature(pipeline.__call__).parameters
        return {key: value for key, value in given.items() if key in accepted}

    def shortened(self, start: Start, asked: Mapping[str, Any]) -> int:
        """Return the number of steps of a run, whose scheduler is set, by diffusers' count."""
        pipeline = self.starting(start)
        steps = asked.get("num_inference_steps", len(pipeline.scheduler.timesteps))
        return len(pipeline.get_timesteps(steps, start.strength, pipeline.device)[0])

    def encode(self, start: Start, size: Size, generator: torch.Generator) -> Tensor:
        """Return the latents of images as diffusers' image-to-image pipelines make them."""
        vae: Any = self.modules["vae"]
        pixels = self.placed(VaeImageProcessor().preprocess(start.image, *size))
        encoded = vae.encode(pixels)
        latents = (
            encoded.latent_dist.sample(generator) if hasattr(encoded, "latent_dist") else encoded.latents
        )
        mean, std = self._statistics(latents)
        return (latents - mean) * vae.config.scaling_factor / std

    def decode(self, latents: Tensor) -> np.ndarray:
        """Return the images (N, H, W, 3) in [0, 1] of latents as the text-to-image pipeline decodes them."""
        vae: Any = self.modules["vae"]
        mean, std = self._statistics(latents)
        decoded = vae.decode(latents * std / vae.config.scaling_factor + mean).sample
        images: np.ndarray = VaeImageProcessor().postprocess(decoded, output_type="np")
        return images

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the VAE's configuration says of the latents' mean and deviation."""
        config: Any = self.modules["vae"].config
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is None or std is None:
            mean, std = [getattr(config, "shift_factor", None) or 0.0], [1.0]
        return tuple(latents.new_tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))  # type: ignore[return-value]


def enlarged(latents: Tensor, size: Size) -> Tensor:
    """Return latents enlarged for an image of this size."""
    return F.interpolate(latents, tuple(side // 8 for side in size), mode="bilinear")


def enlarged_images(images: np.ndarray, size: Size) -> list[Image.Image]:
    """Return images (N, H, W, 3) in [0, 1] as PIL images of this size."""
    return [_resized(image, size) for image in VaeImageProcessor.numpy_to_pil(images)]


def _resized(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size[::-1] else image.resize(size[::-1], Image.Resampling.LANCZOS)


def _each(given: Any, change: Any) -> Any:
    return [change(one) for one in given] if isinstance(given, (list, tuple)) else change(given)
