"""Clips that control clips, and the image that they start from, in files and in requests."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from controlnext.errors import InputError
from controlnext.runtime.serving.clip_inputs import control_clip
from fuzz import commands
from fuzz.makers import MAKERS
from fuzz.odd_clips import CODECS, odd_clip
from fuzz.odd_files import odd_image
from fuzz.proposals import OUTSIDE, bytes_change, file_change
from fuzz.target import Case, Target, digest
from fuzz.verdict import wrong_text

WHICH, FRAMES = "which.txt", "frames"
MOST_FRAMES, MOST_PIXELS = 8, 1 << 16
LISTS = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile '{0}'\n",
    "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.mp4\n",
    "[playlist]\nFile1={0}\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    '<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{0}</BaseURL></Period></MPD>',
)
"""Files that name another one, which FFmpeg would open."""
NAMES = (
    *("frame-10.png", "frame-9999999999999999999999.png", "\x1b[31m.png", "é.PNG", "..png", ".png", "²³.png"),
    *("a" * 250 + ".png", "x.jpeg", "frame-٣.png", "x.png.txt", "new\nline.png", "0.tiff"),
)


class Clips(Target):
    """Makes a clip by ``controlnext run``, and reads it as a server does."""

    name: ClassVar[str] = "video"
    reads_anywhere = True
    seconds: ClassVar[int] = 30

    def write_sound(self, directory: Path) -> None:
        """Write a bundle, the image, and control clips in several formats, one as images."""
        from support.fake_clips import write_fake_clips

        write_fake_clips(directory / "bundle")
        (directory / "start.png").write_bytes(MAKERS["image"]())
        for format in CODECS:
            (directory / f"clip.{format}").write_bytes(MAKERS["clip"](format=format))
        (directory / FRAMES).mkdir()
        for number in range(3):
            (directory / FRAMES / f"frame-{number}.png").write_bytes(MAKERS["image"]())
        (directory / WHICH).write_text("clip.mp4")

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change the bytes of a clip, put an odd one in its place, or one that names other files."""
        name = f"clip.{rng.choice(list(CODECS))}"
        which = {"kind": "write", "file": WHICH, "content": name}
        kind = rng.choice(("bytes", "bytes", "bytes", "odd", "odd", "list", "file", "frames", "start"))
        if kind == "frames":
            return Case(self.name, [{**which, "content": FRAMES}, _of_frames(rng)])
        if kind == "start":
            return Case(self.name, [odd_image("start.png", rng)])
        if kind == "list":
            content = rng.choice(LISTS).format(rng.choice((OUTSIDE, "clip.avi", "/etc/passwd", "start.png")))
            return Case(self.name, [which, {"kind": "write", "file": name, "content": content}], "refused")
        if kind == "file":
            return Case(self.name, [which, file_change(name, rng)])
        changes = [which, *([odd_clip(name, rng)] if kind == "odd" else [])]
        if kind == "bytes" or rng.random() < 0.5:
            content = (
                MAKERS["clip"](**changes[-1]["options"]) if kind == "odd" else (sound / name).read_bytes()
            )
            changes.append(bytes_change(content, name, rng))
        return Case(self.name, changes)

    def attempt(self, directory: Path, output: Path) -> str:
        """Make a clip of the frames that it has."""
        file = directory / (directory / WHICH).read_text()
        _read_inline(file)
        clip = output / "clip"
        commands.run(
            *("run", directory / "bundle", "--image", directory / "start.png", "--control-image", file),
            *("--steps", 1, "--frames", 2, "--height", 64, "--width", 64, "--frames-per-batch", 2),
            *(
                "--overlap",
                1,
                "--output",
                clip,
                "--backend",
                "onnxruntime",
                "--device",
                "cpu",
                "--threads",
                1,
            ),
        )
        return digest(*(_pixels(frame) for frame in sorted(clip.iterdir())))


def _pixels(frame: Path) -> Any:
    from PIL import Image

    return Image.open(frame)


def _of_frames(rng: Random) -> dict[str, Any]:
    name = f"{FRAMES}/{rng.choice(NAMES)}"
    return rng.choice(
        (
            odd_image(name, rng),
            odd_image(f"{FRAMES}/frame-1.png", rng),
            {"kind": "directory", "file": name},
            {"kind": "pipe", "file": name},
            {"kind": "link", "file": name, "to": rng.choice(("/dev/zero", "loop", ".", "..", "frame-1.png"))},
            {"kind": "write", "file": name, "content": "x"},
        )
    )


def _read_inline(file: Path) -> None:
    """Read a clip as one in a request, of which an error says what is wrong."""
    if not file.is_file() or file.stat().st_size > 1 << 25:
        return
    message = ""
    try:
        with ExitStack() as opened:
            frames = control_clip([file.read_bytes()], None, MOST_FRAMES, MOST_PIXELS, opened)
            for number in range(len(frames)):
                frames[number].load()
    except InputError as error:
        message = str(error)
    if wrong := wrong_text(message):
        raise AssertionError(f"inline: {wrong}")


TARGETS = (Clips(),)
