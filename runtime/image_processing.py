"""The resize that Stable Video Diffusion's image encoder was trained with, Gaussian blur, then cubic, and
that of latents, bilinear.

They are linear and separable, so one matrix for each axis does all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controlnext.errors import InputError
from controlnext.types import FloatArray

_CUBIC_A = -0.75
"""The parameter of the cubic convolution kernel (Keys 1981) that PyTorch uses."""


def preprocess_for_clip(
    image: FloatArray, mean: Sequence[float], std: Sequence[float], size: int
) -> FloatArray:
    """Return CLIP's ``pixel_values`` (1, 3, size, size) float32 of an image (3, H, W) float32 in [0, 1].

    ``mean`` and ``std`` of the three channels normalize it, as the checkpoint's feature extractor says.
    Equals diffusers' ``StableVideoDiffusionPipeline``, which resizes ``2 * image - 1`` and maps that back:
    the weights of the resize add up to one, so the result is the same. Raises the errors of
    :func:`resize_antialiased`.
    """
    resized = resize_antialiased(image, size)
    return ((resized - _per_channel(mean)) / _per_channel(std))[None]


def _per_channel(values: Sequence[float]) -> FloatArray:
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def resize_antialiased(image: FloatArray, size: int | tuple[int, int]) -> FloatArray:
    """Resize ``image`` (3, H, W) float32 to (3, h, w) float32; ``size`` is (h, w), or one number for both.

    Equals diffusers' ``_resize_with_antialiasing``. Sharp edges overshoot the image's range.

    Raises:
        InputError: height or width is less than 2 pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(image.shape[1:]) < 2:
        raise InputError(
            f"the image is {image.shape[2]} x {image.shape[1]} pixels; give one of 2 x 2 or more"
        )
    rows, columns = _resize_matrix(image.shape[1], height), _resize_matrix(image.shape[2], width)
    return np.matmul(np.matmul(rows, image), columns.T)


def resize_bilinear(maps: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Return feature maps (..., H, W) float32 enlarged to (..., h, w) of ``size``, as PyTorch's bilinear
    interpolation without aligned corners does."""
    rows, columns = (_bilinear(*pair) for pair in zip(maps.shape[-2:], size, strict=True))
    return np.matmul(np.matmul(rows, maps), columns.T)


def _bilinear(length: int, size: int) -> FloatArray:
    """Return the weight of each of ``length`` pixels in each of ``size``, (size, length) float32."""
    places = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0)
    first = np.minimum(np.floor(places).astype(np.int64), length - 1)
    second, share = np.minimum(first + 1, length - 1), places - first
    matrix = np.zeros((size, length))
    np.add.at(matrix, (np.arange(size), first), 1 - share)
    np.add.at(matrix, (np.arange(size), second), share)
    return matrix.astype(np.float32)


def _resize_matrix(length: int, size: int) -> FloatArray:
    """Return the weight of each input pixel of an axis in each output pixel, (size, length) float32."""
    offsets, blur = _gaussian(length / size)
    centers, cubic = _cubic(length, size)
    taps = centers[:, :, None] + offsets
    # reflected at the first and at the last pixel
    taps = (length - 1) - np.abs((length - 1) - np.abs(taps))
    matrix = np.zeros((size, length))
    np.add.at(matrix, (np.arange(size)[:, None, None], taps), cubic[:, :, None] * blur)
    return matrix.astype(np.float32)


def _gaussian(factor: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return offsets and weights of the blur for shrinking by ``factor``: two sigmas, an odd number."""
    sigma = max((factor - 1.0) / 2.0, 0.001)
    count = int(max(2.0 * 2 * sigma, 3)) | 1
    offsets = np.arange(count) - count // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    return offsets, weights / weights.sum()


def _cubic(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return pixels and weights (size, 4) of cubic interpolation, corners aligned, borders repeated."""
    # float32 as in PyTorch: its rounding moves sharp edges, by which results differ by up to 5e-5
    step = np.float32(length - 1) / np.float32(size - 1) if size > 1 else np.float32(0)
    places = np.arange(size, dtype=np.float32) * step
    first = np.minimum(np.floor(places), length - 1)
    rest = (places - first).astype(np.float64)
    near = np.stack([rest, 1 - rest])
    far = near + 1
    a = _CUBIC_A
    near_weights = ((a + 2) * near - (a + 3)) * near**2 + 1
    far_weights = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights = np.stack([far_weights[0], near_weights[0], near_weights[1], far_weights[1]], axis=1)
    taps = first.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.clip(taps, 0, length - 1), weights
