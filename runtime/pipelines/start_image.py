"""The images that a run starts from, and the masks of what it makes anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from controlnext.errors import InputError
from controlnext.image_input import Bands, rgb_of
from controlnext.runtime.mask_crop import Crop, crop_around, filled, overlaid
from controlnext.runtime.pipelines.image_controls import images_of_prompts
from controlnext.runtime.request import Request
from controlnext.runtime.sizes import Size
from controlnext.runtime.vae import control_array
from controlnext.types import FloatArray

_WHITE = 128
"""Pixels of a mask from here on are made anew."""


@dataclass(frozen=True)
class StartImage:
    """The ``images`` that a run starts from: one, or one for each prompt or for each result.

    ``masks``: of mode L, white where the image is made anew; none without a mask. ``padding``: that of
    ``padding_mask_crop``.
    """

    images: Sequence[Bands]
    masks: Sequence[Image.Image] = ()
    padding: int | None = None

    @classmethod
    def of(cls, request: Request) -> Self | None:
        """Return those of a request; None if it starts from noise.

        Raises :class:`InputError` for images that do not fit each other.
        """
        if request.image is None:
            return None
        images = images_of_prompts(request.image, request, "image", "images")
        given = request.mask_image
        masks = [] if given is None else images_of_prompts(given, request, "mask_image", "masks")
        for number in range(max(len(images), len(masks)) if masks else 0):
            image, mask = (of[number % len(of)][0].size for of in (images, masks))
            if image != mask:
                raise InputError(
                    f"the mask has {mask[0]} x {mask[1]} pixels, the image {image[0]} x {image[1]};"
                    " give `mask_image` the size of `image`",
                    argument="mask_image",
                )
        if request.padding_mask_crop is None:
            return cls(images, [rgb_of(mask).convert("L") for mask in masks])
        if len(images) > 1 or len(masks) > 1:
            raise InputError(
                f"padding_mask_crop was given with {len(images)} images and {len(masks)} masks; give one of"
                " each",
                argument="padding_mask_crop",
            )
        # of 8 bits, as those that the result is put back into
        return cls([(rgb_of(images[0]),)], [rgb_of(masks[0]).convert("L")], request.padding_mask_crop)

    @property
    def size(self) -> Size:
        """Height and width of the first image."""
        width, height = self.images[0][0].size
        return height, width

    def crop(self, height: int, width: int) -> Crop | None:
        """Return the part of the image that is made anew at this size; None for all of it."""
        if self.padding is None:
            return None
        crop = crop_around(self.masks[0], height, width, self.padding)
        if crop is None:
            raise InputError(
                "the mask is black everywhere: there is nothing to crop; paint what is to be made anew white",
                argument="mask_image",
            )
        return crop

    def samples(self, height: int, width: int) -> FloatArray:
        """Return the images as (N, 3, height, width) float32 in [-1, 1]."""
        images = cropped(self.images, self.crop(height, width), (height, width))
        return control_array(images, height, width) * np.float32(2) - np.float32(1)

    def mask(self, height: int, width: int) -> FloatArray:
        """Return the masks as (N, 1, height, width) float32: 1 for what is made anew, else 0."""
        cut = cropped([(mask,) for mask in self.masks], self.crop(height, width), (height, width))
        fitted = [
            mask if mask.size == (width, height) else mask.resize((width, height), Image.Resampling.LANCZOS)
            for (mask,) in cut
        ]
        return np.stack([np.asarray(mask)[None] >= _WHITE for mask in fitted]).astype(np.float32)

    def overlaid(
        self, results: Iterable[Image.Image], height: int, width: int, each: int
    ) -> Iterator[Image.Image]:
        """Yield the image, with each of the ``results`` of this size where the mask is white.

        ``each``: the number of results for each prompt.
        """
        crop = self.crop(height, width)
        for number, result in enumerate(results):
            prompt = number // each
            bands, mask = self.images[prompt % len(self.images)], self.masks[prompt % len(self.masks)]
            yield overlaid(rgb_of(bands), mask, result, crop)

    def control(self, images: Sequence[Bands], height: int, width: int) -> list[Bands]:
        """Return control images of the whole image as those of the part that is made anew."""
        crop, size = self.crop(height, width), self.images[0][0].size
        if crop is None:
            return list(images)
        whole = [
            bands
            if bands[0].size == size
            else tuple(band.resize(size, Image.Resampling.LANCZOS) for band in bands)
            for bands in images
        ]
        return cropped(whole, crop, (height, width))


def cropped(images: Sequence[Bands], crop: Crop | None, size: Size) -> list[Bands]:
    """Return the ``crop`` of each image, resized into ``size`` as a whole; without one the images."""
    if crop is None:
        return list(images)
    return [tuple(filled(crop.of(band), *size) for band in bands) for bands in images]
