"""The images and videos of requests for clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fractions import Fraction

from PIL import Image

from controlnext.bundle.files import writing_to
from controlnext.bundle.scratch import temporary_directory
from controlnext.errors import InputError, blames
from controlnext.image_input import ImageReader
from controlnext.runtime.media.inline_images import decode_image
from controlnext.runtime.media.video_files import Frames, open_clip
from controlnext.runtime.preprocess import MadeOnce, shared_preprocessor

FIELD = "control_clip"

_VIDEOS = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (0, b"GIF8"))
"""Where what stands in files of MP4, of WebM, and of GIF: the formats that FFmpeg is given to read. There are
others, such as playlists, that name further files and addresses for it to open."""

Change = Callable[[Image.Image], Image.Image]


class InlineFrames(Sequence[Image.Image]):
    """A control clip of images in memory, each decoded when it is needed, and changed by ``change``."""

    fps: Fraction | None = None

    def __init__(self, contents: Sequence[bytes], change: Change, max_pixels: int) -> None:
        self._contents, self._change, self._max_pixels = contents, change, max_pixels

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, number: int) -> Image.Image:  # type: ignore[override]
        return self._change(decode_image(FIELD, self._contents[number], self._max_pixels))


def holds_video(contents: Sequence[bytes]) -> bool:
    """Return whether these files are one video, and not images."""
    return len(contents) == 1 and any(contents[0].startswith(mark, at) for at, mark in _VIDEOS)


def control_clip(
    contents: Sequence[bytes], preprocess: str | None, max_frames: int, max_pixels: int, opened: ExitStack
) -> InlineFrames | Frames | MadeOnce:
    """Return the control clip of a request: one video, or an image for every frame.

    A frame that is preprocessed is so once. Of a video at most one frame more than ``max_frames`` is there,
    so that who counts them sees that there are too many. ``opened``: closes what is open, and removes files,
    when the clip is done.

    Raises :class:`InputError` for a file that cannot be read, or of more than ``max_pixels`` in a frame.
    """
    change: Change = ImageReader(f"the clip in {FIELD}", one_ground=True).read_rgb
    if preprocess is not None:
        with blames("preprocess"):
            change = shared_preprocessor(preprocess)
    clip = _opened_clip(contents, change, max_frames, max_pixels, opened)
    return clip if preprocess is None else MadeOnce(clip)


def _opened_clip(
    contents: Sequence[bytes], change: Change, max_frames: int, max_pixels: int, opened: ExitStack
) -> InlineFrames | Frames:
    if holds_video(contents):
        path = opened.enter_context(temporary_directory("upload")) / "control"
        with writing_to(path, FIELD):
            path.write_bytes(contents[0])
        try:
            return opened.enter_context(open_clip(path, change, max_frames + 1, max_pixels))
        except InputError as error:
            raise InputError(
                f"{FIELD} cannot be read as a video of at most {max_pixels} pixels a frame; give MP4, WebM,"
                " GIF, or images",
                argument=FIELD,
            ) from error
    clip = InlineFrames(contents, change, max_pixels)
    try:
        # a mistake shows before the request waits
        clip[0]
    except InputError as error:
        if len(contents) > 1:
            raise
        raise InputError(f"{error}; or give one video: MP4, WebM or GIF", argument=FIELD) from error
    return clip
