"""Control clips, whose images are read on demand."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from controlnext.errors import InputError, MissingDependencyError, blames
from controlnext.image_input import Bands, ImageReader
from controlnext.runtime.request import VideoRequest
from controlnext.runtime.vae import control_array, read_images
from controlnext.types import FloatArray


class Clip:
    """The images of a control clip, read on demand; the last few are cached."""

    def __init__(self, given: Any) -> None:
        if isinstance(given, (str, Path)):
            raise InputError(
                f"control_images is {str(given)!r}; read the video first:"
                " controlnext.runtime.media.load_video(path)",
                argument="control_images",
            )
        if given is None or not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
            raise InputError(
                "no control clip was given; set `control_images` to a sequence of images",
                argument="control_images",
            )
        if isinstance(given, np.ndarray) and given.ndim != 4:
            raise InputError(
                f"control_images is an array of shape {given.shape}; give (frames, height, width, 3)",
                argument="control_images",
            )
        if not len(given):
            raise InputError(
                "control_images is empty; give one image for every frame", argument="control_images"
            )
        self._given, self._reader = given, ImageReader("the clip in control_images", one_ground=True)
        # cached without a reference to self, which would keep this object and its last frames alive
        read = partial(_frame_array, given, self._reader)
        self._frame = lru_cache(maxsize=2 * VideoRequest.frames_per_batch)(read)

    def __len__(self) -> int:
        return len(self._given)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first image."""
        width, height = _frame_bands(self._given, self._reader, 0)[0].size
        return height, width

    def array(self, numbers: list[int], height: int, width: int) -> FloatArray:
        """Return the frames of these ``numbers`` as (1, frames, 3, height, width) float32 in [0, 1]."""
        return np.stack([self._frame(number, height, width) for number in numbers])[None]


def _frame_array(clip: Any, reader: ImageReader, number: int, height: int, width: int) -> FloatArray:
    return control_array([_frame_bands(clip, reader, number)], height, width)[0]


def _frame_bands(clip: Any, reader: ImageReader, number: int) -> Bands:
    with blames("control_images"):
        return read_one(f"frame {number} of control_images", clip[number], reader)


def read_one(name: str, given: Any, reader: ImageReader) -> Bands:
    """Return the single image ``given``; errors call it ``name``."""
    try:
        images = read_images(given, reader)
    except MissingDependencyError:
        raise
    except InputError as error:
        raise InputError(f"{name}: {error}", argument=error.argument) from error
    if len(images) > 1:
        raise InputError(f"{name} has {len(images)} images; give one")
    return images[0]


def frame_count(request: VideoRequest, clips: list[Clip]) -> int:
    """Return the number of frames of the result, for which every control needs an image."""
    shortest = min(len(clip) for clip in clips)
    frames = shortest if request.num_frames is None else request.num_frames
    if frames > shortest:
        raise InputError(
            f"num_frames is {frames}, but the control has {shortest} frames; give an image for every frame",
            argument="num_frames",
        )
    return frames
