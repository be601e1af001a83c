"""Pictures in and out: control pictures to arrays, latents to pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from controlnext.engines import Engine
from controlnext.errors import InputError, WorkError
from controlnext.runtime.tiling import Tiles

FloatArray = NDArray[np.float32]
Bands = tuple[Image.Image, ...]
"""One picture: a PIL image of mode RGB, or one or three of mode F with values in [0, 1]."""

_SIXTEEN_BITS = 65535
_ACCEPTED = (
    "give a PIL image, or an array (height, width), (height, width, 3) or (height, width, 4) of uint8 or of"
    " floats in [0, 1]"
)


def read_pictures(given: object) -> list[Bands]:
    """One picture, or a sequence or stack (N, height, width, 3) of pictures.

    A picture is a PIL image of any mode, or an array (height, width), (height, width, 3) or
    (height, width, 4) of uint8 or of floats in [0, 1]. Grey pictures may have 16 bits. Alpha is dropped, a
    rotation in EXIF data is not applied. Raises :class:`~controlnext.errors.InputError` for anything else.
    """
    several = given.ndim == 4 if isinstance(given, np.ndarray) else isinstance(given, Sequence)
    pictures = [_read(picture) for picture in given] if several else [_read(given)]  # type: ignore[attr-defined]
    if not pictures:
        raise InputError(f"no control picture was given; {_ACCEPTED}")
    return pictures


def _read(given: object) -> Bands:
    if isinstance(given, np.ndarray) and given.dtype.kind == "f":
        return _float_bands(given.astype(np.float32))
    try:
        image = Image.fromarray(given) if isinstance(given, np.ndarray) else given
        if not isinstance(image, Image.Image):
            raise InputError(f"the picture is of type {type(image).__name__}; {_ACCEPTED}")
        if image.mode[0] not in "IF":
            return (image.convert("RGB"),)
        levels = np.asarray(image, np.float32)
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"the picture cannot be read ({error}); {_ACCEPTED}") from error
    return _float_bands(levels if image.mode == "F" else levels / np.float32(_SIXTEEN_BITS))


def _float_bands(levels: FloatArray) -> Bands:
    if levels.ndim == 2:
        levels = levels[..., None]
    if levels.ndim != 3 or levels.shape[2] not in (1, 3, 4) or not levels.size:
        raise InputError(f"the picture is an array of shape {levels.shape}; {_ACCEPTED}")
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 1):
        raise InputError(f"the picture has values from {low:g} to {high:g}; {_ACCEPTED}")
    return tuple(Image.fromarray(levels[..., band]) for band in range(min(levels.shape[2], 3)))


def control_array(pictures: Sequence[Bands], height: int, width: int) -> FloatArray:
    """(N, 3, height, width) float32, RGB in [0, 1].

    A picture of another size is resized with a Lanczos filter, without keeping its proportions, as diffusers'
    image processor does with PIL images.
    """
    return np.stack([_resized(picture, height, width) for picture in pictures])


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
    """Pictures (up to ``chunk``, H, W, 3) float32 in [0, 1] of the latents (N, C, H/8, W/8), in turn.

    ``config`` is the VAE's: its scaling, mean and shift are undone as diffusers does. With ``tiles`` the
    decoder sees one of them at a time, and only the picture grows with its size.

    Raises:
        WorkError: the decoder gave a number that is not finite.
    """
    for start in range(0, len(latents), chunk):
        some = _unscaled(config, latents[start : start + chunk])
        yield _pixels(_samples(decoder, some)) if tiles is None else _in_tiles(decoder, tiles, some)


def _in_tiles(decoder: Engine, tiles: Tiles, latents: FloatArray) -> FloatArray:
    count, _, height, width = latents.shape
    pictures = np.empty((count, height * tiles.factor, width * tiles.factor, 3), np.float32)
    for top, left, samples in tiles.decode(partial(_samples, decoder), latents):
        part = _pixels(samples)
        pictures[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return pictures


def _samples(decoder: Engine, latents: FloatArray) -> FloatArray:
    samples = decoder.run({"latent_sample": latents})["sample"]
    if not np.isfinite(samples).all():
        raise WorkError(
            "the decoded picture is not finite: this VAE overflows in float16; export with --precision"
            " fp32 or with the VAE that is made for float16"
        )
    return samples


def _pixels(samples: FloatArray) -> FloatArray:
    """(N, H, W, 3) in [0, 1]."""
    return np.ascontiguousarray((samples / 2 + np.float32(0.5)).clip(0, 1).transpose(0, 2, 3, 1))


def _unscaled(config: Mapping[str, Any], latents: FloatArray) -> FloatArray:
    latents = latents / np.float32(config["scaling_factor"])
    mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        latents = latents * _per_channel(std) + _per_channel(mean)
    elif config.get("shift_factor") is not None:
        latents = latents + np.float32(config["shift_factor"])
    return latents


def _per_channel(values: Sequence[float]) -> FloatArray:
    return np.asarray(values, np.float32).reshape(1, -1, 1, 1)


def to_pil(pictures: FloatArray) -> list[Image.Image]:
    """PIL images of the pictures (N, H, W, 3) in [0, 1]."""
    return [Image.fromarray(picture) for picture in (pictures * 255).round().astype(np.uint8)]
