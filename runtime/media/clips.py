"""A clip as a list of images: what is short enough to be in memory, read and written in one call."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from controlnext.bundle.remote import is_remote
from controlnext.errors import InputError
from controlnext.families.values import is_integer
from controlnext.image_input import ImageReader
from controlnext.runtime.media.clip_formats import DEFAULT_FPS, FORMATS
from controlnext.runtime.media.image_files import unchanged
from controlnext.runtime.media.video_files import ClipFiles, open_clip
from controlnext.runtime.vae import to_pil
from controlnext.types import FloatArray

_FRAMES = "give images of Pillow or an array (frames, height, width, 3) of floats from 0 to 1"


def load_video(path: str | Path, frames: int | None = None) -> list[Image.Image]:
    """Return the frames of a video file, or of a directory of images in the natural order of their names.

    They are upright RGB images with 8 bits, as :class:`~controlnext.runtime.VideoPipeline` takes them for
    ``control_images``; of a longer clip they are the first ``frames``.

    Raises:
        InputError: no frame can be read, or ``frames`` is not a number of 1 or more.
        MissingDependencyError: PyAV is not installed; directories do not need it.
    """
    if frames is not None and (not is_integer(frames) or frames < 1):
        raise InputError(f"frames is {frames!r}; it must be at least 1", argument="frames")
    place = _video(path)
    with open_clip(place, ImageReader(str(place)).read_rgb, frames) as clip:
        return [clip[number] for number in range(len(clip))[:frames]]


def video_fps(path: str | Path) -> float:
    """Return the frames a second of a video file; 7 where it has none, and for a directory of images.

    Raises as :func:`load_video`.
    """
    with open_clip(_video(path), unchanged, 1) as clip:
        return float(clip.fps or DEFAULT_FPS)


def export_to_video(
    frames: Sequence[Image.Image] | FloatArray, output: str | Path, fps: float = float(DEFAULT_FPS)
) -> Path:
    """Write the frames of a clip, such as ``out.frames[0]`` of a :class:`~controlnext.runtime.VideoPipeline`;
    return the path.

    Args:
        frames: images of one size, or an array (frames, height, width, 3) of floats from 0 to 1. The sides of
            an MP4 are even.
        output: a file ending in .mp4 or .gif, which is replaced, or a new directory, for numbered PNG files.
        fps: frames a second, from 0.1 to 240 (GIF: 50).

    Raises:
        InputError: a value of another kind, or an output that cannot be written.
        WorkError: the encoder fails.
        MissingDependencyError: PyAV is not installed; directories do not need it.
    """
    if not isinstance(output, str | Path) or not str(output):
        raise InputError(
            f"output is {reprlib.repr(output)}; give the path of a file or of a new directory",
            argument="output",
        )
    if isinstance(fps, bool) or not isinstance(fps, Real):
        raise InputError(f"fps is {reprlib.repr(fps)}; it must be a number", argument="fps")
    images = _images(frames)
    kind, sides = FORMATS.get(Path(output).suffix.lower()), images[0].size
    if kind and kind.even_sides and any(side % 2 for side in sides):
        raise InputError(
            f"frames have {sides[0]} x {sides[1]} pixels, and the sides of an MP4 must be even; resize them,"
            " or give an `output` that ends in .gif",
            argument="frames",
        )
    with ClipFiles(Path(output), fps) as files:
        (path,) = files.save(iter(images))
    return path


def _video(path: Any) -> Path:
    """Return the path of what is given; raise :class:`InputError` for what is none."""
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(
            f"path is {reprlib.repr(path)}; give the path of a video or of a directory of images",
            argument="path",
        )
    if isinstance(path, str) and is_remote(path):
        raise InputError(
            f"path is {path}, which is not fetched; download it, and give its path", argument="path"
        )
    return Path(path)


def _images(frames: Any) -> list[Image.Image]:
    """Return frames as images; raise :class:`InputError` for what is none, or has several sizes."""
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype.kind != "f":
            raise InputError(
                f"frames is an array of shape {frames.shape} and type {frames.dtype}; {_FRAMES}, such as"
                " out.frames[0]",
                argument="frames",
            )
        return to_pil(frames.clip(0, 1))
    if not isinstance(frames, Sequence) or isinstance(frames, str) or not frames:
        given = "empty" if isinstance(frames, (list, tuple)) else f"of type {type(frames).__name__}"
        raise InputError(f"frames is {given}; {_FRAMES}", argument="frames")
    kinds = {type(frame).__name__ for frame in frames if not isinstance(frame, Image.Image)}
    if kinds:
        hint = ", such as out.frames[0]" if kinds & {"list", "ndarray"} else ""
        raise InputError(
            f"frames has entries of type {', '.join(sorted(kinds))}; {_FRAMES}{hint}", argument="frames"
        )
    sizes = sorted({f"{frame.width} x {frame.height}" for frame in frames})
    if len(sizes) > 1:
        raise InputError(
            f"frames have {' and '.join(sizes[:3])} pixels; give images of one size", argument="frames"
        )
    return list(frames)
