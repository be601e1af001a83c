"""Images: control image, image to start from and mask, in files and in requests."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, ClassVar

from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime.media.inline_images import decode_image
from fuzz import commands
from fuzz.makers import MAKERS
from fuzz.odd_files import FORMATS, odd_image
from fuzz.proposals import byte_change, bytes_change, file_change
from fuzz.target import Case, Target, digest
from fuzz.verdict import wrong_text

FILES = {"control.png": "PNG", "start.jpg": "JPEG", "mask.webp": "WEBP"}
LOSSLESS = ("PNG", "TIFF", "BMP")
MOST_PIXELS = 1 << 16


class Images(Target):
    """Makes an image of three images by ``controlnext run``, and reads them as a server does."""

    name: ClassVar[str] = "image"
    reads_anywhere = True
    seconds: ClassVar[int] = 20

    def write_sound(self, directory: Path) -> None:
        """Write a bundle, and the images in three formats."""
        from support.fake_bundle import write_fake_bundle

        write_fake_bundle(directory / "bundle", "sd15", encoder=True)
        for name, format in FILES.items():
            (directory / name).write_bytes(MAKERS["image"](format=format))

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change bytes of an image, put an odd one in its place, or something that is no image."""
        name = rng.choice(list(FILES))
        kind = rng.choice(("bytes", "bytes", "odd", "odd", "format", "plain", "file"))
        if kind == "odd":
            return Case(self.name, [odd_image(name, rng)])
        if kind == "file":
            return Case(self.name, [file_change(name, rng)])
        if kind == "bytes":
            return Case(self.name, [byte_change(sound / name, name, rng)])
        if kind == "plain":
            return self._plain(rng)
        made = _made(name, format=rng.choice(FORMATS))
        content = MAKERS["image"](**made["options"])
        return Case(self.name, [made, bytes_change(content, name, rng)])

    def _plain(self, rng: Random) -> Case:
        """Change how the same pixels are stored."""
        options = {"format": rng.choice(LOSSLESS), "mode": rng.choice(("RGB", "RGBA"))}
        return Case(self.name, [_made("control.png", **options)], "same")

    def attempt(self, directory: Path, output: Path) -> str:
        """Make an image."""
        for name in FILES:
            _read_inline(directory / name)
        image = output / "image.png"
        options = zip(("--control-image", "--image", "--mask-image"), FILES, strict=True)
        paths = [part for option, name in options for part in (option, directory / name)]
        commands.run(
            *("run", directory / "bundle", "--prompt", "a cat", "--steps", 2, "--height", 16, "--width", 16),
            *("--backend", "onnxruntime", "--device", "cpu", "--threads", 1, "--output", image),
            *paths,
        )
        return digest(Image.open(image))


def _made(name: str, **options: Any) -> dict[str, Any]:
    return {"kind": "make", "file": name, "maker": "image", "options": options}


def _read_inline(file: Path) -> None:
    """Read an image as one in a request, of which an error says what is wrong."""
    if not file.is_file() or file.stat().st_size > 1 << 25:
        return
    message = ""
    try:
        decode_image("image", file.read_bytes(), MOST_PIXELS)
    except InputError as error:
        message = str(error)
    if wrong := wrong_text(message) or ("a message of several lines" if "\n" in message else None):
        raise AssertionError(f"inline: {wrong}")


TARGETS = (Images(),)
