"""Clips as lists of images: ``load_video`` and ``export_to_video``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from controlnext import processor
from controlnext.errors import InputError
from controlnext.runtime.media import export_to_video, load_video, video_fps
from controlnext.runtime.media.clip_formats import FORMATS, encoder_options


def _images(count: int) -> list[Image.Image]:
    """Images whose grey tells their number."""
    return [Image.new("RGB", (48, 32), (20 * number + 30,) * 3) for number in range(count)]


def _greys(images: list[Image.Image]) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_a_clip_comes_back(tmp_path: Path, name: str) -> None:
    """As RGB images in their order, all or the first ones; an older file is replaced."""
    export_to_video(_images(2), tmp_path / f"old{Path(name).suffix}")
    path = export_to_video(_images(11), str(tmp_path / name))
    assert path == tmp_path / name
    found = load_video(str(path))
    assert [(image.mode, image.size) for image in found] == [("RGB", (48, 32))] * 11
    assert _greys(found) == pytest.approx(_greys(_images(11)), abs=3)
    assert [list(image.getdata()) for image in load_video(path, 4)] == [
        list(image.getdata()) for image in found[:4]
    ]


@pytest.mark.parametrize(("given", "expected"), [({}, 7), ({"fps": 24}, 24), ({"fps": 29.97}, 29.97)])
def test_frames_a_second(tmp_path: Path, given: dict[str, Any], expected: float) -> None:
    path = export_to_video(_images(3), tmp_path / "clip.mp4", **given)
    with av.open(str(path)) as video:
        assert float(video.streams.video[0].average_rate or 0) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("frames", "output", "fps", "words"),
    [
        ([], "clip.mp4", 7, r"frames is empty; give images of Pillow or an array \(frames, height, wid"),
        (None, "clip.mp4", 7, "frames is of type NoneType; give images of Pillow"),
        ([np.zeros((8, 8, 3))], "clip.mp4", 7, r"frames has entries of type ndarray; .*out\.frames\[0\]"),
        ([_images(2)], "clip.mp4", 7, r"frames has entries of type list; give .*, such as out\.frames\[0\]"),
        (np.zeros((1, 3, 8, 8, 3)), "clip.mp4", 7, r"an array of shape \(1, 3, 8, 8, 3\) and type float64"),
        (np.zeros((3, 8, 8, 3), int), "clip.mp4", 7, r"an array of shape \(3, 8, 8, 3\) and type int64"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))], "clip.mp4", 7, "8 x 16 and 8 x 8 pixels; gi"),
        ([Image.new("RGB", (64, 63))], "clip.mp4", 7, "64 x 63 pixels, and the sides of an MP4 must be even"),
        ("clip.mp4", _images(1), 7, "output is \\[<.*; give the path of a file"),
        (_images(1), "", 7, "output is ''; give the path of a file"),
        (_images(1), "clip.webm", 7, "does not have the suffix of a clip"),
        (_images(1), "clip.mp4", 0, "cannot have 0 frames a second"),
        (_images(1), "clip.mp4", "7", "fps is '7'; it must be a number"),
        (5, "clip.mp4", 7, "frames is of type int; give images of Pillow"),
        (_images(1), 5, 7, "output is 5; give the path of a file"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, frames: Any, output: Any, fps: Any, words: str) -> None:
    place = tmp_path / output if isinstance(output, str) and output else output
    with pytest.raises(InputError, match=words):
        export_to_video(frames, place, fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [0, -1, True, 2.0, "2"])
def test_a_number_of_frames_is_a_whole_one(tmp_path: Path, frames: Any) -> None:
    with pytest.raises(InputError, match=f"frames is {frames!r}; it must be at least 1"):
        load_video(tmp_path, frames)


@pytest.mark.parametrize("read", [load_video, video_fps])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        (None, "path is None; give the path of a video or of a directory of images"),
        ("", "path is ''; give the path"),
        (_images(1), "path is .{1,200}; give the path"),
        ("missing.mp4", r"cannot read video missing\.mp4"),
        ("https://host/a.mp4", "path is https://host/a.mp4, which is not fetched; download it"),
    ],
)
def test_what_cannot_be_read(read: Callable[..., object], path: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(path)


def test_frames_of_an_array(tmp_path: Path) -> None:
    """As a call gives for ``output_type`` "np"."""
    frames = np.stack([np.asarray(image) for image in _images(3)]).astype(np.float32) / 255
    for name in ("of-array", "of-images"):
        export_to_video(frames if name == "of-array" else _images(3), tmp_path / name)
    made = [load_video(tmp_path / name) for name in ("of-array", "of-images")]
    assert [image.tobytes() for image in made[0]] == [image.tobytes() for image in made[1]]


def test_the_rate_of_a_video(tmp_path: Path) -> None:
    """The usual one of a clip for a directory; that of a film is the same number again when it is written."""
    for fps in (10, 30000 / 1001):
        assert video_fps(export_to_video(_images(2), tmp_path / "clip.mp4", fps)) == fps
    assert video_fps(export_to_video(_images(2), tmp_path / "frames")) == 7


@pytest.mark.parametrize("sets", [{"avx2"}, {"avx2", "avx512f"}])
def test_x264_uses_functions_that_give_one_file(monkeypatch: pytest.MonkeyPatch, sets: set[str]) -> None:
    """Those for AVX-512 do not: now and then the file is a few bytes longer. A GIF has another encoder."""
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset(sets))
    mp4, gif = (encoder_options(FORMATS[ending]) for ending in (".mp4", ".gif"))
    assert mp4.get("x264-params") == ("asm=avx2" if "avx512f" in sets else None)
    assert "x264-params" not in gif
