"""Reading of images from files, PIL and NumPy.

The command line, the pipelines, preprocessors and calibration all read through this module, so that an image
means the same everywhere; docs/families.md has the rules.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from controlnext.errors import InputError
from controlnext.regular import check_regular
from controlnext.types import FloatArray

Bands = tuple[Image.Image, ...]
"""One image: a PIL image of mode RGB, or one or three of mode F with values in [0, 1]."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the image files in a directory."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "DDS")
"""Pillow's names of the formats that are read. It has others, of which some (EPS) have programs run."""

GROUNDS = ("black", "white")
"""Backgrounds that transparent images are composited onto."""

_ACCEPTED = (
    "give a PIL image, or an array (height, width), (height, width, 3) or (height, width, 4) of uint8, uint16"
    " or floats in [0, 1]"
)
_EIGHT_BITS, _SIXTEEN_BITS = 255, 65535
_KEYED = ("1", "L", "RGB")
"""Modes in which a file may declare one colour transparent."""
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
"""A TIFF tag, and the value of it that Pillow ignores in images of more than 8 bits."""

logger = logging.getLogger(__name__)


def open_image(path: Path) -> Image.Image:
    """Return the image in a file, loaded and upright, in the file's own mode: :class:`ImageReader` makes RGB
    of it.

    Raises :class:`InputError` for a missing or damaged file.
    """
    try:
        with Image.open(check_regular(path), formats=_formats()) as image, _unmapped(image):
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except Exception as error:  # the errors of Pillow's decoders for damaged files share no other class
        reason = getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not an image in one of these formats"
        raise InputError(
            f"cannot read image {path}: {reason}; give a PNG, JPEG, WebP or TIFF file"
        ) from error


def _formats() -> list[str]:
    """Return those of :data:`FORMATS` that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def rgb_of(bands: Bands) -> Image.Image:
    """Return an image that was read as one PIL image of mode RGB, 8 bits."""
    if bands[0].mode == "RGB":
        return bands[0]
    levels = np.stack([np.asarray(band) for band in bands], axis=-1)
    pixels = (np.broadcast_to(levels, (*levels.shape[:2], 3)) * _EIGHT_BITS).round()
    return Image.fromarray(pixels.astype(np.uint8))


class ImageReader:
    """A reader of PIL images of any mode, and of arrays (height, width), (height, width, 3) or
    (height, width, 4) of bool, uint8, uint16 or floats in [0, 1].

    An image with transparency is composited onto the ground that its content contrasts with: white if the
    content is dark, else black. A warning that calls it ``name`` says so once. ``one_ground``: the images are
    the frames of a clip, and all get the ground of the first one.
    """

    def __init__(self, name: str = "the image", *, one_ground: bool = False) -> None:
        self._name, self._one_ground = name, one_ground
        self._ground: int | None = None
        self._warned = False

    def read(self, given: object) -> Bands:
        """Return the image upright and opaque; grey images of more than 8 bits, and floats, keep all levels.

        Raises :class:`InputError` for an object that is not an image, and for levels without a known white.
        """
        try:
            decoded = _from_array(given) if isinstance(given, np.ndarray) else _from_pil(given)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # PIL may decode a file only now: as in open_image
            raise _refusal(f"cannot be read ({error})") from error
        if isinstance(decoded, Image.Image):
            return (self._opaque(decoded),)
        levels = self._opaque_levels(decoded)
        return tuple(Image.fromarray(levels[..., band]) for band in range(levels.shape[2]))

    def read_rgb(self, given: object) -> Image.Image:
        """Return the same as :meth:`read` as one PIL image of mode RGB, 8 bits, for preprocessors."""
        return rgb_of(self.read(given))

    def _opaque(self, image: Image.Image) -> Image.Image:
        """Return an image of mode RGB or RGBA in mode RGB."""
        if image.mode == "RGB" or image.getchannel("A").getextrema()[0] == _EIGHT_BITS:
            return image.convert("RGB")
        pixels, white = np.asarray(image), np.float32(_EIGHT_BITS)
        ground = self._choose_ground(pixels[..., :3].max(-1) / white, pixels[..., 3] / white)
        behind = Image.new("RGBA", image.size, GROUNDS[ground])
        return Image.alpha_composite(behind, image).convert("RGB")

    def _opaque_levels(self, levels: FloatArray) -> FloatArray:
        """Return levels (height, width, 1 or 3), with the last channel of 2 or 4 applied as alpha."""
        if levels.shape[2] in (1, 3):
            return levels
        colours, alpha = levels[..., :-1], levels[..., -1]
        if alpha.min() == 1:
            return colours
        ground = np.float32(self._choose_ground(colours.max(-1), alpha))
        return ground + alpha[..., None] * (colours - ground)

    def _choose_ground(self, bright: NDArray[Any], alpha: NDArray[Any]) -> int:
        """Return 0 for black or 1 for white, from the brightness (largest channel, in [0, 1]) of visible
        pixels."""
        ground, visible = self._ground, alpha.sum()
        if ground is None:
            ground = int(visible > 0 and (bright * alpha).sum() / visible < 0.5)
            if self._one_ground and visible > 0:
                self._ground = ground
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s is transparent: it was put on a %s ground, from which its content stands out; give it"
                " without transparency to choose another",
                self._name,
                GROUNDS[ground],
            )
        return ground


def _refusal(what: str) -> InputError:
    return InputError(f"the image {what}; {_ACCEPTED}")


@contextmanager
def _unmapped(image: Any) -> Iterator[None]:
    """Keep Pillow from mapping a TIFF file into memory: it maps the size of the rotated image. Without the
    file's name it reads the file instead."""
    name = getattr(image, "filename", "")
    if name:
        image.filename = ""
    try:
        yield
    finally:
        if name:
            image.filename = name


def _from_pil(given: object) -> Image.Image | FloatArray:
    """Return an image of mode RGB or RGBA, or floats (height, width, 1 or 2): grey [and alpha]."""
    if not isinstance(given, Image.Image):
        raise _refusal(f"is of type {type(given).__name__}")
    if 0 in given.size:
        raise _refusal(f"has {given.width} x {given.height} pixels")
    # after a palette image was converted to RGB the key is stale; such an image has no file format
    noted = given.format is not None
    with _unmapped(given):
        image = ImageOps.exif_transpose(given)
    if image.mode[0] in "IF":
        values = np.asarray(image)
        levels = _checked(values) if image.mode == "F" else _sixteen_bits(values)
        if getattr(given, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            levels = 1 - levels
        key = image.info.get("transparency") if noted else None
        return np.stack([levels] if key is None else [levels, values != key], axis=-1, dtype=np.float32)
    if image.has_transparency_data and (noted or image.mode not in _KEYED):
        return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return image.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image | FloatArray:
    """Return uint8 and bool as an image of mode RGB or RGBA, others as floats (height, width, 1, 3 or 4)."""
    values = array[..., None] if array.ndim == 2 else array
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or not values.size:
        raise _refusal(f"is an array of shape {array.shape}")
    if values.dtype == np.bool_:
        values = values * np.uint8(_EIGHT_BITS)
    if values.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
        return image if image.mode == "RGBA" else image.convert("RGB")
    if values.dtype.str[1:] == "u2":
        return _sixteen_bits(values)
    if values.dtype.kind == "f":
        return _checked(values.astype(np.float32))
    raise _refusal(f"cannot be read: it is an array of {values.dtype}")


def _sixteen_bits(values: NDArray[Any]) -> FloatArray:
    """Return integers from 0 to 65535 as levels in [0, 1]."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _SIXTEEN_BITS:
        raise _refusal(f"has values from {low} to {high}, where 16 bits have 0 to {_SIXTEEN_BITS}")
    if 0 < high <= _EIGHT_BITS:
        raise _refusal(
            f"has values up to {high} in a format of 16 or 32 bits: that may be 8 bits or nearly black;"
            f" convert it to 8 bits, or to all 16 (white is {_SIXTEEN_BITS})"
        )
    return values.astype(np.float32) / np.float32(_SIXTEEN_BITS)


def _checked(levels: FloatArray) -> FloatArray:
    """Return floats unchanged after checking that they are in [0, 1]."""
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 1):
        raise _refusal(f"has values from {low:.7g} to {high:.7g}, where floats are in [0, 1]")
    return levels
