"""Odd clips, made anew each time from options."""

from __future__ import annotations

import io
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np

CODECS = {
    "mp4": "libx264",
    "webm": "libvpx",
    "gif": "gif",
    "matroska": "mjpeg",
    "avi": "mpeg4",
    "mpegts": "libx264",
}
"""A codec for each format, in FFmpeg's names."""
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def clip(
    format: str = "mp4",
    codec: str = "",
    width: int = 16,
    height: int = 16,
    frames: int = 3,
    rate: str = "7",
    streams: int = 1,
    audio: bool = False,
) -> bytes:
    """Return a clip; empty where FFmpeg does not write such a one."""
    import av

    file, codec = io.BytesIO(), codec or CODECS[format]
    options = {"threads": "1", "preset": "ultrafast"} if codec == "libx264" else {"threads": "1"}
    try:
        with av.open(file, "w", format=format) as container:
            made: list[Any] = [container.add_stream(codec, Fraction(rate), options) for _ in range(streams)]
            for stream in made:
                stream.width, stream.height, stream.pix_fmt = width, height, PIXELS.get(codec, "yuv420p")
            if audio:
                _silence(container)
            for number in range(frames):
                values = np.full((height, width, 3), 40 * number % 256, np.uint8)
                for stream in made:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(values, "rgb24")))
            for stream in made:
                container.mux(stream.encode())
    except (av.FFmpegError, ValueError, OverflowError):
        return b""
    return file.getvalue()


def _silence(container: Any) -> None:
    import av

    stream = container.add_stream("aac", 44100)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate = 44100
    for packet in (*stream.encode(frame), *stream.encode()):
        container.mux(packet)


def odd_clip(name: str, rng: Random) -> dict[str, Any]:
    """Return a change that puts an odd clip in the place of the file ``name``."""
    format = rng.choice(list(CODECS))
    options: dict[str, Any] = rng.choice(
        (
            {"frames": rng.choice((0, 1, 40))},
            {"rate": rng.choice(("1/100000", "1000000", "240", "241", "30000/1001", "2147483647", "1"))},
            {"streams": 3},
            {"streams": 0, "audio": True},
            {"audio": True},
            {"width": rng.choice((2, 8, 17, 4000)), "height": rng.choice((2, 8, 17))},
            {"codec": rng.choice(("libx264", "mpeg4", "mjpeg", "png", "ffv1", "libvpx-vp9"))},
        )
    )
    return {"kind": "make", "file": name, "maker": "clip", "options": {"format": format, **options}}
