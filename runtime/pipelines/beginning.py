"""The sample before a run's first step: noise, or an image with noise, and what is kept of the image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from controlnext.errors import InputError
from controlnext.families.schema import VAE, VAE_ENCODER
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.pipelines.image_denoising import Kept
from controlnext.runtime.pipelines.start_image import StartImage
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import Request
from controlnext.runtime.samplers import Sampler
from controlnext.runtime.sizes import Size
from controlnext.runtime.tiling import Tiles
from controlnext.runtime.vae import MOMENTS, encode_samples
from controlnext.types import FloatArray

MASK, MASKED = "mask", "masked_image_latents"
"""Inputs of the denoisers that were trained to inpaint: what is made anew, and the latents of the rest."""


@dataclass(frozen=True)
class Beginning:
    """The sample before the first step of a run, what the run keeps of its image, and inputs of an inpainting
    denoiser, with a row for each result."""

    latents: FloatArray
    outside: Kept | None = None
    inputs: dict[str, FloatArray] = field(default_factory=dict)


class Beginner:
    """Makes the beginnings of a bundle's runs, with diffusers' arithmetic and order of random numbers.

    ``inpaints``: whether the denoiser was trained to inpaint. Such a one makes all of the image anew where
    there is no mask, as diffusers' pipelines do with a white one.
    """

    def __init__(self, bundle: Bundle, inpaints: bool) -> None:
        self._bundle, self._inpaints = bundle, inpaints

    def check(self, request: Request) -> None:
        """Raise :class:`InputError` if the bundle cannot do what a request asks for."""
        name = "image" if request.image is not None else "upscale" if request.upscale is not None else ""
        if name and self._bundle.family.image_start is None:
            raise InputError(
                f"{name} was given, but runs of {self._bundle.family.title} cannot start from an image;"
                f" remove `{name}`",
                argument=name,
            )
        encodes = request.image is not None or (name and request.upscale_mode == "pixel")
        if (encodes or self._inpaints) and VAE_ENCODER not in self._bundle.manifest.graphs:
            why = f"which `{name}` needs" if name else "which an inpainting model needs"
            raise InputError(
                f"{self._bundle.path} has no {VAE_ENCODER}, {why}; export it again, with a VAE that has an"
                " encoder",
                argument=name or None,
            )

    def first_place(self, sampler: Sampler, strength: float) -> int:
        """Return the index of the step at which a run from an image begins, as diffusers counts."""
        start = self._bundle.family.image_start
        assert start is not None
        steps = sampler.counted_steps
        place = start.first_step(steps, strength) * sampler.order
        if place >= len(sampler.timesteps):
            raise InputError(
                f"strength is {strength:g}, which leaves none of {steps} steps; raise `strength` or"
                " `num_inference_steps`",
                argument="strength",
            )
        return place

    def of_noise(
        self, sampler: Sampler, noise: FloatArray, size: Size, generator: TorchGenerator
    ) -> Beginning:
        """Return the beginning of a run from ``noise`` (N, C, h, w)."""
        inputs = self._inpainting(None, noise, size, generator, None)
        return Beginning(noise * np.float32(sampler.init_noise_sigma), None, inputs)

    def of_image(
        self,
        request: Request,
        sampler: Sampler,
        shape: tuple[int, ...],
        size: Size,
        generator: TorchGenerator,
        start: StartImage,
        tiles: Tiles | None,
    ) -> Beginning:
        """Return the beginning of a run of latents of this ``shape`` from images."""
        masked = bool(start.masks)
        # where nothing of it would be left in the sample, nor is kept
        unused = self._inpaints and request.strength == 1
        image = None if unused else _for_rows(self.encode(start, size, generator, tiles), shape[0])
        noise = generator.randn(shape)
        inputs = self._inpainting(start, noise, size, generator, tiles)
        if (masked or self._inpaints) and request.strength == 1:
            latents = noise * np.float32(sampler.init_noise_sigma)
        else:
            assert image is not None
            latents = sampler.add_noise(image, noise, sampler.begin)
        if not masked or self._inpaints:
            return Beginning(latents, None, inputs)
        assert image is not None
        # diffusers encodes the rest of the image, and draws for it, where nothing takes it
        self._skip(shape, max(len(start.images), len(start.masks)), generator)
        return Beginning(latents, Kept(image, noise, self._small(start.mask(*size), shape)))

    def of_latents(
        self, sampler: Sampler, image: FloatArray, size: Size, generator: TorchGenerator
    ) -> Beginning:
        """Return the beginning of a run from the latents of images (N, C, h, w), one for each result."""
        noise = generator.randn(image.shape)
        inputs = self._inpainting(None, noise, size, generator, None)
        return Beginning(sampler.add_noise(image, noise, sampler.begin), None, inputs)

    def encode(
        self, start: StartImage, size: Size, generator: TorchGenerator, tiles: Tiles | None
    ) -> FloatArray:
        """Return the latents (N, C, h, w) of images at a size in pixels."""
        return self._encoded(start.samples(*size), generator, tiles)

    def _encoded(self, samples: FloatArray, generator: TorchGenerator, tiles: Tiles | None) -> FloatArray:
        config = self._bundle.manifest.configs[VAE]
        return encode_samples(self._bundle.engine(VAE_ENCODER), config, samples, generator, tiles)

    def _inpainting(
        self,
        start: StartImage | None,
        noise: FloatArray,
        size: Size,
        generator: TorchGenerator,
        tiles: Tiles | None,
    ) -> dict[str, FloatArray]:
        """Return the inputs of a denoiser that was trained to inpaint; none for another."""
        if not self._inpaints:
            return {}
        mask = np.ones((1, 1, *size), np.float32) if start is None or not start.masks else start.mask(*size)
        samples = np.zeros((1, 3, *size), np.float32) if start is None else start.samples(*size)
        rest = self._encoded(samples * (np.float32(1) - mask), generator, tiles)
        return {MASK: self._small(mask, noise.shape), MASKED: _for_rows(rest, len(noise))}

    def _small(self, mask: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """Return a mask in pixels as one of latents of this ``shape``."""
        factor = self._bundle.family.vae_factor
        return _for_rows(mask[:, :, ::factor, ::factor], shape[0])

    def _skip(self, shape: tuple[int, ...], images: int, generator: TorchGenerator) -> None:
        """Draw the numbers of an image that is encoded in diffusers alone."""
        (output,) = self._bundle.manifest.graphs[VAE_ENCODER].outputs
        if output.name == MOMENTS:
            generator.randn((images, *shape[1:]))


def _for_rows(arrays: FloatArray, count: int) -> FloatArray:
    """Return ``count`` rows: those of one image, of each prompt, or of each result."""
    return np.repeat(arrays, count // len(arrays), axis=0)
