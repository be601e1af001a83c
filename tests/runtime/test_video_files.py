"""Clips from folders and videos, and to MP4 and GIF: what comes back, and that frames do not pile up."""

from __future__ import annotations

import struct
import sys
import tempfile
import wave
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from controlnext.errors import InputError, MissingDependencyError
from controlnext.runtime.media.clip_formats import FORMATS
from controlnext.runtime.media.video_files import ClipFiles, open_clip, write_clip

WIDTH, HEIGHT = 48, 32


def _unchanged(image: Image.Image) -> Image.Image:
    return image


def _image(number: int) -> Image.Image:
    """A smooth image whose colours tell its number."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    bands = [x * 4, y * 4 + 60, np.full_like(x, 20 * number + 30)]
    return Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8))


def _images(count: int) -> Iterator[Image.Image]:
    return (_image(number) for number in range(count))


def _distance(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of the levels, of 0 to 255."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("fps", [Fraction(7), Fraction(25), Fraction(2997, 100)])
def test_a_clip_comes_back(tmp_path: Path, ending: str, fps: Fraction) -> None:
    """As many frames, in their order, of their size, nearly their colours; frames a second as far as a GIF
    can count them."""
    path = tmp_path / f"clip{ending}"
    write_clip(path, _images(9), fps)
    with open_clip(path, _unchanged) as clip:
        assert len(clip) == 9
        assert clip.fps == pytest.approx(fps, rel=0 if ending == ".mp4" else 0.02)
        for number in range(9):
            assert clip[number].size == (WIDTH, HEIGHT)
            # those of neighbours differ by 6.7
            assert _distance(clip[number], _image(number)) < 3


def test_an_mp4_plays_everywhere(tmp_path: Path) -> None:
    """H.264 in 4:2:0, with a note of which colours were meant."""
    write_clip(tmp_path / "clip.mp4", _images(3), Fraction(7))
    with av.open(str(tmp_path / "clip.mp4")) as video:
        context = video.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert context.colorspace == av.video.reformatter.Colorspace.ITU601


def test_a_gif_keeps_its_pace_and_repeats(tmp_path: Path) -> None:
    """Seven frames a second are no whole hundredths: the delays differ, their sum is right."""
    write_clip(tmp_path / "clip.gif", _images(14), Fraction(7))
    with Image.open(tmp_path / "clip.gif") as gif:
        delays = []
        for number in range(gif.n_frames):
            gif.seek(number)
            delays.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert len(delays) == 14
    assert set(delays) == {140, 150}
    assert sum(delays) == pytest.approx(2000, abs=10)


def test_frames_are_encoded_as_they_come(tmp_path: Path) -> None:
    """However many there are, hardly any is still in memory when the next is asked for."""
    alive: list[weakref.ref[Image.Image]] = []
    most = 0

    def images() -> Iterator[Image.Image]:
        nonlocal most
        for number in range(30):
            image = _image(number % 9)
            alive.append(weakref.ref(image))
            yield image
            del image
            most = max(most, sum(reference() is not None for reference in alive))

    for ending in FORMATS:
        write_clip(tmp_path / f"clip{ending}", images(), Fraction(7))
    assert most <= 2


@pytest.mark.parametrize("ending", FORMATS)
def test_a_failure_leaves_what_was_there(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"clip{ending}"
    path.write_text("precious")

    def images() -> Iterator[Image.Image]:
        yield _image(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clip(path, images(), Fraction(7))
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_images_of_a_folder_are_in_natural_order(tmp_path: Path) -> None:
    """Frame 2 before frame 10, whatever the case; other files are no frames. Each is read when asked for."""
    names = ["Frame-1.PNG", "frame-2.png", "frame-9.png", "frame-10.jpg"]
    for number, name in enumerate(names):
        _image(number).save(tmp_path / name)
    (tmp_path / "frame-3.txt").write_text("notes")
    (tmp_path / "frame-9.png").write_text("damaged")
    changed = []

    def change(image: Image.Image) -> Image.Image:
        changed.append(image)
        return image.resize((8, 8))

    with open_clip(tmp_path, change) as clip:
        assert (len(clip), clip.fps, changed) == (4, None, [])
        for number in (0, 1, 3):
            assert clip[number].size == (8, 8)
            assert _distance(changed.pop(), _image(number)) < 3
        with pytest.raises(InputError, match=r"cannot read image .*frame-9\.png"):
            clip[2]


def test_no_more_frames_are_decoded_than_needed(tmp_path: Path, temporary: Path) -> None:
    """They lie in a temporary folder, which is removed even where the work on them fails."""
    write_clip(tmp_path / "clip.mp4", _images(9), Fraction(7))

    def fail() -> None:
        with open_clip(tmp_path / "clip.mp4", _unchanged, limit=4) as clip:
            assert len(clip) == 4
            assert len(list(temporary.rglob("*.png"))) == 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("matrix", "angle"), [((0, 1, -1, 0), -90), ((-1, 0, 0, -1), 180)])
def test_a_video_that_lies_on_its_side_is_put_upright(
    tmp_path: Path, matrix: tuple[int, ...], angle: int
) -> None:
    """Telephones film as they are held and note how the image is to be turned."""
    path = tmp_path / "clip.mp4"
    write_clip(path, _images(2), Fraction(7))
    # (a b u, c d v, x y w) of the track header: 16.16 but for u, v, w, which are 2.30
    before, after = (
        struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        for a, b, c, d in ((1, 0, 0, 1), matrix)
    )
    start = path.read_bytes().index(b"tkhd")
    content = path.read_bytes()
    path.write_bytes(content[:start] + content[start:].replace(before, after, 1))
    assert path.read_bytes() != content
    with open_clip(path, _unchanged) as clip:
        assert _distance(clip[1], _image(1).rotate(angle, expand=True)) < 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot read video .*Invalid argument"),
        (b"GIF89a", "cannot read video .*Invalid data"),
        (b"no video at all", "cannot read video .*Invalid data"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nwords\n\n" * 5, "has no images"),
        (None, "cannot read video .*No such file"),
    ],
)
def test_unreadable_videos_are_refused(
    tmp_path: Path, temporary: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words), open_clip(path, _unchanged):
        pass
    assert list(temporary.iterdir()) == []


def test_a_cut_off_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, _images(9), Fraction(7))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot read video"), open_clip(path, _unchanged):
        pass


def test_sound_is_no_clip(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    with pytest.raises(InputError, match="has no images"), open_clip(tmp_path / "sound.wav", _unchanged):
        pass


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no images .*\.png"), open_clip(tmp_path, _unchanged):
        pass


def test_a_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg reads addresses; a file is no address."""
    monkeypatch.chdir(tmp_path)
    path = Path("http:clip.gif")
    write_clip(path, _images(2), Fraction(7))
    with open_clip(path, _unchanged) as clip:
        assert len(clip) == 2


def test_the_first_video_sets_the_pace(tmp_path: Path) -> None:
    """A folder has none: a clip of it has seven frames a second, unless it is told."""
    write_clip(tmp_path / "slow.mp4", _images(2), Fraction(5))
    write_clip(tmp_path / "quick.mp4", _images(2), Fraction(60))
    _image(0).save(tmp_path / "1.png")
    controls = {"": 7, "slow.mp4": 5, "quick.mp4": 60}
    for asked in (None, 12.5):
        for name, wanted in controls.items():
            with ClipFiles(tmp_path / "new.mp4", fps=asked) as files:
                files.control(tmp_path / name, _unchanged)
                files.control(tmp_path / "slow.mp4", _unchanged)
                assert files.save(_images(2)) == [tmp_path / "new.mp4"]
            with av.open(str(tmp_path / "new.mp4")) as video:
                assert video.streams.video[0].average_rate == (asked or (5 if not name else wanted))


@pytest.mark.parametrize(
    ("output", "fps", "words"),
    [
        ("clip.webm", None, r"does not have the suffix of a clip; accepted: \.mp4, \.gif, or a directory"),
        ("folder.mp4", None, "is a directory"),
        ("full", None, "already exists; give a new or empty directory"),
        ("clip.mp4", 0, "cannot have 0 frames a second; `fps` must be from 0.1 to 240"),
        ("clip.mp4", float("nan"), "nan frames"),
        ("clip.gif", 60, "cannot have 60 frames a second; `fps` must be from 0.1 to 50"),
        ("frames", float("inf"), "inf frames"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, output: str, fps: float | None, words: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=words):
        ClipFiles(tmp_path / output, fps)


def test_a_video_that_is_too_quick_for_a_gif(tmp_path: Path) -> None:
    write_clip(tmp_path / "quick.mp4", _images(2), Fraction(60))
    with ClipFiles(tmp_path / "clip.gif") as files, pytest.raises(InputError, match="60 frames a second"):
        files.control(tmp_path / "quick.mp4", _unchanged)


def test_a_list_of_videos_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", _images(2), Fraction(7))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    with pytest.raises(InputError, match="cannot read video"), open_clip(tmp_path / "list.mp4", _unchanged):
        pass


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of images need none."""
    monkeypatch.setitem(sys.modules, "av", None)
    _image(0).save(tmp_path / "1.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(MissingDependencyError, match=r'pip install "controlnext\[video\]"'):
        ClipFiles(tmp_path / "new.mp4")
    with ClipFiles(tmp_path / "frames") as files:
        with pytest.raises(MissingDependencyError, match=r"controlnext\[video\]"):
            files.control(tmp_path / "clip.mp4", _unchanged)
        assert len(files.control(tmp_path, _unchanged)) == 1
        files.save(_images(2))
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["000000.png", "000001.png"]
