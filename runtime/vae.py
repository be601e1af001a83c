"""Turn control images into arrays, and latents into images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from controlnext.engines import Engine
from controlnext.errors import InputError, WorkError
from controlnext.families import LatentRgb
from controlnext.image_input import Bands, ImageReader
from controlnext.runtime.tiling import Tiles
from controlnext.types import FloatArray


def read_images(given: object, reader: ImageReader | None = None) -> list[Bands]:
    """Read one image, or a sequence or stack (N, height, width, 3) of images, with ``reader``.

    ``reader``: by default a new one. Raises :class:`~controlnext.errors.InputError` for anything else.
    """
    reader = reader or ImageReader()
    several = given.ndim == 4 if isinstance(given, np.ndarray) else isinstance(given, Sequence)
    images = [reader.read(image) for image in given] if several else [reader.read(given)]  # type: ignore[attr-defined]
    if not images:
        raise InputError("no control image was given; give one, or one for each prompt")
    return images


def control_array(images: Sequence[Bands], height: int, width: int) -> FloatArray:
    """Return the images as an array (N, 3, height, width) float32, RGB in [0, 1].

    An image of another size is resized with a Lanczos filter, without keeping its proportions, as diffusers'
    image processor does with PIL images.
    """
    return np.stack([_resized(image, height, width) for image in images])


def _resized(bands: Bands, height: int, width: int) -> FloatArray:
    if bands[0].size != (width, height):
        bands = tuple(band.resize((width, height), Image.Resampling.LANCZOS) for band in bands)
    if bands[0].mode == "RGB":
        return np.ascontiguousarray(np.asarray(bands[0], np.float32).transpose(2, 0, 1)) / np.float32(255)
    # the filter overshoots at edges
    planes = np.stack([np.asarray(band) for band in bands]).clip(0, 1)
    return np.broadcast_to(planes, (3, height, width))


def decode_latents(
    decoder: Engine,
    config: Mapping[str, Any],
    latents: FloatArray,
    chunk: int,
    tiles: Tiles | None = None,
) -> Iterator[FloatArray]:
    """Yield images (up to ``chunk``, H, W, 3) float32 in [0, 1] of the latents (N, C, H/8, W/8), in order.

    ``config`` is the VAE's: its scaling, mean and shift are undone as in diffusers. With ``tiles`` the
    decoder gets one tile at a time, so only the memory of the image itself grows with its size.

    Raises:
        WorkError: the decoder's output is not finite.
    """
    for start in range(0, len(latents), chunk):
        some = _unscaled(config, latents[start : start + chunk])
        yield _pixels(_samples(decoder, some)) if tiles is None else _in_tiles(decoder, tiles, some)


def _in_tiles(decoder: Engine, tiles: Tiles, latents: FloatArray) -> FloatArray:
    count, _, height, width = latents.shape
    images = np.empty((count, height * tiles.factor, width * tiles.factor, 3), np.float32)
    for top, left, samples in tiles.decode(partial(_samples, decoder), latents):
        part = _pixels(samples)
        images[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return images


def _samples(decoder: Engine, latents: FloatArray) -> FloatArray:
    samples = decoder.run({"latent_sample": latents})["sample"]
    if not np.isfinite(samples).all():
        raise WorkError(
            "the decoded image is not finite: this VAE overflows with these latents; in float16 export it"
            " with `precision` fp32, or take the VAE that is made for float16"
        )
    return samples


def _pixels(samples: FloatArray) -> FloatArray:
    """Return samples as pixels (N, H, W, 3) in [0, 1]."""
    return np.ascontiguousarray((samples / 2 + np.float32(0.5)).clip(0, 1).transpose(0, 2, 3, 1))


def _unscaled(config: Mapping[str, Any], latents: FloatArray) -> FloatArray:
    latents = latents / np.float32(config["scaling_factor"])
    mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        latents = latents * _per_channel(std) + _per_channel(mean)
    elif config.get("shift_factor") is not None:
        latents = latents + np.float32(config["shift_factor"])
    return latents


def latent_colours(rgb: LatentRgb, latents: FloatArray) -> FloatArray:
    """Return latents (N, C, h, w) as images (N, h, w, 3) float32 in [0, 1], by a linear map."""
    factors, bias = (np.array(values, np.float32) for values in (rgb.factors, rgb.bias))
    return _pixels((latents.transpose(0, 2, 3, 1) @ factors + bias).transpose(0, 3, 1, 2))


def _per_channel(values: Sequence[float]) -> FloatArray:
    return np.asarray(values, np.float32).reshape(1, -1, 1, 1)


def to_pil(images: FloatArray) -> list[Image.Image]:
    """Return PIL images of arrays (N, H, W, 3) in [0, 1]."""
    return [Image.fromarray(image) for image in (images * 255).round().astype(np.uint8)]
