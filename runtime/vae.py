"""Turn images into arrays and latents, and latents into images."""

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
from controlnext.runtime.random import TorchGenerator
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


def encode_samples(
    encoder: Engine,
    config: Mapping[str, Any],
    samples: FloatArray,
    generator: TorchGenerator,
    tiles: Tiles | None = None,
) -> FloatArray:
    """Return the latents (N, C, H/8, W/8) of samples (N, 3, H, W) in [-1, 1], scaled for the denoiser.

    They are drawn from the distribution that the encoder predicts, as in diffusers' image-to-image pipelines;
    an encoder that predicts none (a tiny VAE's) draws nothing. ``config`` is the VAE's: its scaling, mean and
    shift are applied. ``tiles``: as for :func:`decode_latents`.

    Raises:
        WorkError: the encoder's output is not finite.
    """
    (output,) = (spec.name for spec in encoder.outputs)

    def encoded(some: FloatArray) -> FloatArray:
        return encoder.run({"sample": some})[output]

    # one by one: the encoder needs more memory than the denoiser
    each = [
        encoded(one) if tiles is None else tiles.encode(encoded, one)
        for one in np.split(samples, len(samples))
    ]
    parameters = np.concatenate(each)
    if not np.isfinite(parameters).all():
        raise WorkError(
            "the encoded image is not finite: this VAE overflows with it; in float16 export it with"
            " `precision` fp32, or take the VAE that is made for float16"
        )
    return _scaled(config, drawn(parameters, generator) if output == MOMENTS else parameters)


MOMENTS = "latent_parameters"
"""The encoder's output where it is a distribution: mean and logarithm of the variance."""


def drawn(parameters: FloatArray, generator: TorchGenerator) -> FloatArray:
    """Return latents from the distribution with this mean and logarithm of the variance, (N, 2 C, h, w)."""
    mean, log_variance = np.split(parameters, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * log_variance.clip(*_LOG_VARIANCE))
    return (mean + deviation * generator.randn(mean.shape)).astype(np.float32, copy=False)


_LOG_VARIANCE = (-30, 20)
"""Its range, as diffusers limits it."""


def _scaled(config: Mapping[str, Any], latents: FloatArray) -> FloatArray:
    scale = np.float32(config["scaling_factor"])
    mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        return (latents - _per_channel(mean)) * scale / _per_channel(std)
    scaled: FloatArray = (latents - np.float32(config.get("shift_factor") or 0)) * scale
    return scaled


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
