"""Read and write clips frame by frame: only a few frames of a clip are in memory at a time."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from controlnext.bundle.files import check_writable, new_file, new_folder, writing_to
from controlnext.bundle.scratch import temporary_directory
from controlnext.closeable import Closeable
from controlnext.errors import InputError, WorkError
from controlnext.image_input import IMAGE_SUFFIXES
from controlnext.optional import extra
from controlnext.regular import check_regular
from controlnext.runtime.media.clip_formats import (
    DEFAULT_FPS,
    FORMATS,
    HIGHEST_FPS,
    LOWEST_FPS,
    encoder_options,
)
from controlnext.runtime.media.image_files import Change, MakeRecipe, read_image

_ACCEPTED = "give a directory of images or a video file (MP4, GIF, WebM and others)"
_ENDINGS = ", ".join(FORMATS)
_READ = (
    *("mov", "matroska", "gif", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "apng", "ivf", "mxf", "nut"),
    *("mpegvideo", "m4v", "h264", "hevc", "av1", "obu", "mjpeg", "yuv4mpegpipe", "dv", "wtv", "rm"),
    *("webp_anim", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe"),
    # of these it is told that they have no images
    *("wav", "mp3", "flac", "aac", "srt"),
)
"""The formats that FFmpeg reads here. Others, such as playlists, name further files and addresses, which it
would open."""
_ONLY = {"format_whitelist": ",".join(_READ)}

_MOST_UNREAD = 1 << 30
"""Bytes up to the first image of a clip, and from each to the next."""


class Frames:
    """A clip whose frames are image files. Each is read on demand, and ``change`` is applied to it.

    Attributes:
        fps: frames a second of the source video; None if there is none.
    """

    def __init__(self, paths: Sequence[Path], change: Change, fps: Fraction | None = None) -> None:
        self.fps = fps
        self._paths, self._change = paths, change

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Image.Image:
        return read_image(self._paths[number], self._change)


@contextmanager
def open_clip(
    path: Path, change: Change, limit: int | None = None, max_pixels: int | None = None
) -> Iterator[Frames]:
    """Open the clip in a directory of images, in the natural order of their names, or in a video file.

    The first ``limit`` frames of a video are decoded to a temporary directory, which is removed at the end of
    the block. Raises :class:`InputError` if no frame can be read, or if those of a video have more than
    ``max_pixels``.
    """
    if path.is_dir():
        yield Frames(_listed(path), change)
        return
    with temporary_directory("clip") as directory:
        paths, fps = _decode(path, directory, limit, max_pixels)
        yield Frames(paths, change, fps)


def write_clip(path: Path, images: Iterator[Image.Image], fps: Fraction) -> None:
    """Encode ``images`` of one size one by one to the file ``path``, whose suffix is a key of ``FORMATS``.

    A GIF repeats, and every frame has its own palette. Raises :class:`WorkError` if encoding fails.
    """
    av, ending = _import_av(), path.suffix.lower()
    kind, first = FORMATS[ending], next(images)
    size = {"width": first.width, "height": first.height}
    try:
        with (
            new_file(path) as aside,
            aside.open("wb") as file,
            av.open(file, "w", format=ending[1:]) as video,
        ):
            stream = video.add_stream(kind.codec, fps, encoder_options(kind), pix_fmt=kind.pixels, **size)
            # to what FFmpeg turns RGB unless told otherwise; players guess where it is not noted
            stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
            for image in chain([first], images):
                video.mux(stream.encode(_video_frame(image, kind.pixels)))
            video.mux(stream.encode())
    except av.FFmpegError as error:
        raise WorkError(f"cannot encode {path}: {error.strerror}") from error


class ClipFiles(Closeable):
    """The files of a run that makes a clip: ``output`` is a .mp4 or .gif, or a new directory of PNG files.

    ``fps``: frames a second, by default those of the first control that is a video; ``frames``: the number of
    frames needed. Raises :class:`InputError` for an unsupported suffix or number of frames a second.
    """

    subject = "image"
    """The argument that such a run requires."""
    made = "frames"
    """The name of its results."""
    takes = ("fps", "frames")
    """The options that are passed to this class."""

    def __init__(self, output: Path | None, fps: float | None = None, frames: int | None = None) -> None:
        self.output = Path("clip.mp4") if output is None else output
        self._ending = self.output.suffix.lower()
        self._limit, self._temporary = frames, ExitStack()
        _check_name(self.output)
        check_writable(self.output)
        if self._ending:
            _import_av()
        self._fps = None if fps is None else self._checked(fps)

    def control(self, path: Path, change: Change) -> Frames:
        """Return the control clip in a directory or a file."""
        clip = self._temporary.enter_context(open_clip(path, change, self._limit))
        if self._fps is None and clip.fps is not None:
            self._fps = self._checked(clip.fps)
        return clip

    def save(
        self,
        images: Iterator[Image.Image],
        directory: Path | None = None,
        _make_recipe: MakeRecipe | None = None,
    ) -> list[Path]:
        """Write a clip's frames one by one, in another ``directory`` if one is given; return the paths.

        Clips have no recipe.
        """
        output = self.output if directory is None else directory / self.output.name
        if self._ending:
            write_clip(output, images, self._fps or DEFAULT_FPS)
        else:
            with new_folder(output) as aside:
                for number, image in enumerate(images):
                    image.save(aside / _frame_name(number))
        return [output]

    def close(self) -> None:
        """Remove the temporary files."""
        self._temporary.close()

    def _checked(self, fps: float | Fraction) -> Fraction:
        kind = FORMATS.get(self._ending)
        highest = kind.highest_fps if kind else HIGHEST_FPS
        if not LOWEST_FPS <= fps <= highest:
            raise InputError(
                f"{self.output} cannot have {float(fps):g} frames a second; `fps` must be from"
                f" {LOWEST_FPS} to {highest}",
                argument="fps",
            )
        return Fraction(fps).limit_denominator(1001)


def _check_name(output: Path) -> None:
    if not output.suffix:
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise InputError(
                f"output {output} already exists; give a new or empty directory, or {_ENDINGS}",
                argument="output",
            )
    elif output.suffix.lower() not in FORMATS:
        raise InputError(
            f"output {output} does not have the suffix of a clip; accepted: {_ENDINGS}, or a directory",
            argument="output",
        )
    elif output.is_dir():
        raise InputError(f"output {output} is a directory; give the name of a file", argument="output")


def _listed(directory: Path) -> list[Path]:
    """Return the paths of the images in a directory, ``frame-2`` before ``frame-10``."""
    try:
        paths = [path for path in directory.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise InputError(f"cannot read directory {directory}: {error.strerror}; {_ACCEPTED}") from error
    if not paths:
        raise InputError(f"directory {directory} has no images ({', '.join(IMAGE_SUFFIXES)}); {_ACCEPTED}")
    return sorted(paths, key=lambda path: natural_order(path.name))


def natural_order(name: str) -> list[str | int]:
    """Return a sort key that orders numbers within names as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


class _ClipFile(io.FileIO):
    """A clip of which only so much is read before the next image: FFmpeg would look for one to the end of
    what is none, a terabyte if need be."""

    left = _MOST_UNREAD

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, as the base class does; raise :class:`OSError` where that are too many."""
        content = super().read(size) or b""
        self.left -= len(content)
        if self.left < 0:
            raise OSError(errno.EFBIG, f"it has no image in {_MOST_UNREAD} bytes", self.name)
        return content


def _decode(
    path: Path, directory: Path, limit: int | None, max_pixels: int | None
) -> tuple[list[Path], Fraction | None]:
    """Decode a video to upright frames in ``directory``; return paths and frames a second, if known."""
    av = _import_av()
    paths: list[Path] = []
    try:
        # an open file: FFmpeg takes a name with a colon for an address
        with (
            _ClipFile(check_regular(path)) as file,
            av.open(file, metadata_errors="replace", container_options=_ONLY) as video,
        ):
            streams = video.streams.video
            if streams and max_pixels is not None:
                # the decoder checks it before it makes room for a frame
                streams[0].codec_context.options = {"max_pixels": str(max_pixels)}
            for frame in islice(video.decode(streams[0]) if streams else (), limit):
                file.left = _MOST_UNREAD
                paths.append(directory / _frame_name(len(paths)))
                with writing_to(paths[-1]):
                    # compressed little, as it is read again soon
                    _image_of(frame).rotate(frame.rotation, expand=True).save(paths[-1], compress_level=1)
            if not paths:
                raise InputError(f"{path} has no images; {_ACCEPTED}")
            return paths, streams[0].guessed_rate or None
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"cannot read video {path}: {error.strerror}; {_ACCEPTED}") from error


def _image_of(frame: Any) -> Image.Image:
    """Return a frame in mode RGB, or RGBA if a pixel is transparent: PyAV's conversion drops that."""
    if any(component.is_alpha for component in frame.format.components):
        pixels = frame.to_ndarray(format="rgba")
        if pixels[..., 3].min() < 255:
            return Image.fromarray(pixels)
    return frame.to_image()


def _import_av() -> ModuleType:
    with extra("video"):
        import av
    return av


def _frame_name(number: int) -> str:
    return f"{number:06}.png"


def _video_frame(image: Image.Image, pixels: str) -> Any:
    """Return ``image`` as a frame for an encoder of ``pixels``; only "pal8" needs a palette made here."""
    make = _import_av().VideoFrame
    if pixels != "pal8":
        return make.from_image(image)
    indices = image.quantize(256)
    colours = np.array(indices.getpalette(), np.uint8).reshape(-1, 3)
    palette = np.full((256, 4), 255, np.uint8)
    palette[: len(colours), 1:] = colours
    return make.from_ndarray((np.asarray(indices), palette), format="pal8")
