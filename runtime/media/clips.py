"""A clip as a list of images: what is short enough to be in memory, read and written in one call."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path

from PIL import Image

from controlnext.errors import InputError
from controlnext.image_input import ImageReader
from controlnext.runtime.media.clip_formats import DEFAULT_FPS
from controlnext.runtime.media.video_files import ClipFiles, open_clip


def load_video(path: str | Path, frames: int | None = None) -> list[Image.Image]:
    """Return the frames of a video file, or of a directory of images in the natural order of their names.

    They are upright RGB images with 8 bits, as :class:`~controlnext.runtime.VideoPipeline` takes them for
    ``control_images``; of a longer clip they are the first ``frames``.

    Raises:
        InputError: no frame can be read, or ``frames`` is not a number of 1 or more.
        MissingDependencyError: PyAV is not installed; directories do not need it.
    """
    if not isinstance(path, str | Path):
        raise InputError(
            f"path is {path!r}; give the path of a video or of a directory of images", argument="path"
        )
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise InputError(f"frames is {frames!r}; it must be at least 1", argument="frames")
    path = Path(path)
    with open_clip(path, ImageReader(str(path)).read_rgb, frames) as clip:
        return [clip[number] for number in range(len(clip))[:frames]]


def export_to_video(
    frames: Sequence[Image.Image], output: str | Path, fps: float = float(DEFAULT_FPS)
) -> Path:
    """Write the frames of a clip, such as ``out.frames[0]`` of a :class:`~controlnext.runtime.VideoPipeline`;
    return the path.

    Args:
        frames: images of one size.
        output: a file ending in .mp4 or .gif, which is replaced, or a new directory, for numbered PNG files.
        fps: frames a second, from 0.1 to 240 (GIF: 50).

    Raises:
        InputError: a value of another kind, or an output that cannot be written.
        WorkError: the encoder fails.
        MissingDependencyError: PyAV is not installed; directories do not need it.
    """
    if not isinstance(output, str | Path):
        raise InputError(
            f"output is {output!r}; give the path of a file or of a new directory", argument="output"
        )
    if isinstance(fps, bool) or not isinstance(fps, Real):
        raise InputError(f"fps is {fps!r}; it must be a number", argument="fps")
    is_clip = isinstance(frames, Sequence) and all(isinstance(frame, Image.Image) for frame in frames)
    if not is_clip or len({frame.size for frame in frames}) != 1:
        raise InputError("frames must be images of Pillow, all of one size, at least one", argument="frames")
    with ClipFiles(Path(output), fps) as files:
        (path,) = files.save(iter(frames))
    return path
