"""Clips as lists of images: ``load_video`` and ``export_to_video``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from controlnext import processor
from controlnext.errors import InputError
from controlnext.runtime.media import export_to_video, load_video
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
        ([], "clip.mp4", 7, "frames must be images of Pillow, all of one size, at least one"),
        ([np.zeros((8, 8, 3))], "clip.mp4", 7, "frames must be images of Pillow"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))], "clip.mp4", 7, "all of one size"),
        (_images(1), "clip.webm", 7, "does not have the suffix of a clip"),
        (_images(1), "clip.mp4", 0, "cannot have 0 frames a second"),
        (_images(1), "clip.mp4", "7", "fps is '7'; it must be a number"),
        (5, "clip.mp4", 7, "frames must be images of Pillow"),
        (_images(1), 5, 7, "output is 5; give the path of a file"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, frames: Any, output: Any, fps: Any, words: str) -> None:
    place = tmp_path / output if isinstance(output, str) else output
    with pytest.raises(InputError, match=words):
        export_to_video(frames, place, fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [0, -1, True, 2.0, "2"])
def test_a_number_of_frames_is_a_whole_one(tmp_path: Path, frames: Any) -> None:
    with pytest.raises(InputError, match=f"frames is {frames!r}; it must be at least 1"):
        load_video(tmp_path, frames)


@pytest.mark.parametrize("path", [None, 5, "missing.mp4"])
def test_what_cannot_be_read(path: Any) -> None:
    with pytest.raises(InputError, match=r"cannot read video missing\.mp4|path is (None|5); give the path"):
        load_video(path)


@pytest.mark.parametrize("sets", [{"avx2"}, {"avx2", "avx512f"}])
def test_x264_uses_functions_that_give_one_file(monkeypatch: pytest.MonkeyPatch, sets: set[str]) -> None:
    """Those for AVX-512 do not: now and then the file is a few bytes longer. A GIF has another encoder."""
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset(sets))
    mp4, gif = (encoder_options(FORMATS[ending]) for ending in (".mp4", ".gif"))
    assert mp4.get("x264-params") == ("asm=avx2" if "avx512f" in sets else None)
    assert "x264-params" not in gif
