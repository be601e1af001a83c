"""Odd image files, made anew each time from a name and options: too large to be kept as bytes, or too odd."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
)
MODES += ("I;16", "I;16B")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO", "PPM", "TGA", "PCX", "DDS")
_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 317, 322, 338, 339, 34675)
_VALUES = (0, 1, 2, 3, 7, 8, 16, 32, 33, 1000, 65535, 2**31, 2**32 - 1)
_LEVELS = np.random.RandomState(1).randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def _saved(mode: str = "RGB", format: str = "PNG", orientation: int = 1, **options: Any) -> bytes:
    """Return an image of this mode and format; empty where the format does not have it."""
    image = Image.fromarray(_LEVELS)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    try:
        made = _in_mode(image, mode)
        made.save(file, format, exif=exif, **options)
    except (OSError, ValueError, KeyError, struct.error):
        return b""
    return file.getvalue()


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image.convert("L")).astype(f"{'<>'[mode.endswith('B')]}u2") * 257)
    if mode in ("La", "RGBa"):
        return image.convert(mode[:-1] + "A").convert(mode)
    return image.convert("L").convert(mode) if mode in ("LA", "PA", "I", "F") else image.convert(mode)


def _chunk(kind: bytes, content: bytes, right: bool = True) -> bytes:
    checksum = zlib.crc32(kind + content) ^ (not right)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _png(
    width: int = SIDE,
    height: int = SIDE,
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    zeros: int = 1000,
    chunk: str = "",
    inflated: int = 0,
    right: bool = True,
) -> bytes:
    """Return a PNG file with any header, ``zeros`` bytes of pixels, and a chunk that inflates to many."""
    more = b""
    if chunk:
        content = zlib.compress(bytes(inflated), 9)
        before = b"a\0\0" + (b"\0\0\0" if chunk == "iTXt" else b"")
        if chunk == "iTXt":
            before = b"a\0\1\0\0\0"
        more = _chunk(chunk.encode(), before + content)
    header = struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, colour, 0, 0, interlace)
    pixels = zlib.compress(bytes(zeros), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header, right)
        + more
        + _chunk(b"IDAT", pixels, right)
        + _chunk(b"IEND", b"")
    )


def _gif(width: int = SIDE, height: int = SIDE, frames: int = 1) -> bytes:
    """Return a GIF file with a screen of any size, and many frames of a pixel."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return screen + frame * frames + b";"


def _tiff(width: int = SIDE, height: int = SIDE, loop: bool = False, **tags: int) -> bytes:
    """Return a TIFF file of a grey image with any tags; ``loop``: its directory is followed by itself."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height}
    entries |= {279: width * height} | {int(tag.removeprefix("t")): value for tag, value in tags.items()}
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value % 2**32) for tag, value in sorted(entries.items())
    )
    whole = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8 if loop else 0)
    return whole.ljust(200, b"\0") + bytes(range(256))


def _bmp(width: int = SIDE, height: int = SIDE, bits: int = 24, colours: int = 0) -> bytes:
    """Return a BMP file with any header."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1000, 0, 0, 54) + header + bytes(1000)


def _flat(width: int, height: int, format: str = "PNG") -> bytes:
    """Return a sound file of one colour, small for its number of pixels."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, format)
    return file.getvalue()


def _array(dtype: str = "float32", shape: tuple[int, ...] = (4, 4, 3), value: float = 0.5) -> bytes:
    """Return a NumPy file; of objects it is a pickle that makes a file when it is loaded."""
    file = io.BytesIO()
    array = np.full(shape, value).astype(dtype) if dtype != "object" else np.array([_Payload()], object)
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("pickled-code-was-run", "w")


def odd_image(name: str, rng: Random) -> dict[str, Any]:
    """Return a change that puts an odd image in the place of the file ``name``."""
    side = rng.choice((0, 1, 7, 16, 255, 256, 16385, 65535, 100_000, 2**31 - 1, 2**31, 2**32 - 1))
    sides = {"width": side, "height": rng.choice((side, 1, 16))}
    short = {key: min(value, 65535) for key, value in sides.items()}
    maker, options = rng.choice(
        (
            ("image", {"mode": rng.choice(MODES), "format": rng.choice(FORMATS), **_saving(rng)}),
            ("image", {"mode": rng.choice(MODES), "format": rng.choice(FORMATS)}),
            ("png", {**sides, "depth": rng.choice((1, 2, 4, 8, 16, 3)), "colour": rng.choice(range(8))}),
            ("png", {"chunk": rng.choice(("zTXt", "iTXt", "iCCP", "eXIf")), "inflated": 10**7}),
            ("png", {"right": False, "interlace": rng.choice((0, 1, 2))}),
            ("gif", {**short, "frames": rng.choice((0, 1, 2, 10_000))}),
            ("tiff", {**short, "loop": rng.random() < 0.3, f"t{rng.choice(_TAGS)}": rng.choice(_VALUES)}),
            (
                "bmp",
                {**{k: v % 2**31 for k, v in sides.items()}, "bits": rng.choice((1, 4, 8, 16, 24, 32, 5))},
            ),
            ("flat", {"width": rng.choice((16, 16_000)), "height": rng.choice((1, 12_000))}),
            ("array", {"dtype": rng.choice(("float32", "uint8", "object", "complex64"))}),
        )
    )
    return {"kind": "make", "file": name, "maker": maker, "options": options}


def _saving(rng: Random) -> dict[str, Any]:
    return {"orientation": rng.choice((0, 2, 3, 5, 6, 7, 8, 9, 255, 65535))}


IMAGES: dict[str, Callable[..., bytes]] = {
    "image": _saved,
    "png": _png,
    "gif": _gif,
    "tiff": _tiff,
    "bmp": _bmp,
    "flat": _flat,
    "array": _array,
}
"""Makers of files by name."""
