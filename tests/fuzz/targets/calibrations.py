"""Directories of calibration images and their prompts, for int8 exports."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, ClassVar

from controlnext.evaluation.calibration_data import read_examples
from fuzz.makers import MAKERS
from fuzz.odd_files import odd_image
from fuzz.proposals import bytes_change, file_change, files_of
from fuzz.target import Case, Target, digest

FOLDER = "images"
NAMES = (
    *(
        "b.png",
        "A.PNG",
        "a.jpg",
        "a.PNG",
        "é.png",
        "\x1b[31m.png",
        "..png",
        ".png",
        "x.txt",
        "a.TXT",
        "a.png.txt",
    ),
    *("n\nl.png", "a" * 240 + ".png", "a.npy", "a.safetensors", "a.gif", "latents.pt", "*.png", "a .png"),
)
TEXTS = (
    "",
    " ",
    "\ufeffa cat",
    "\0",
    "a\x1b[31m",
    "a\nb\nc",
    "a" * 10**6,
    "\ud800",
    "é\u202e",
    "(((a:1.3)))",
)


class Calibrations(Target):
    """Reads a directory as ``controlnext-export --calibration`` does before it loads weights."""

    name: ClassVar[str] = "calibration"
    reads_anywhere = True
    seconds: ClassVar[int] = 20

    def write_sound(self, directory: Path) -> None:
        """Write two images with prompts."""
        (directory / FOLDER).mkdir(parents=True)
        for name, format in (("a.png", "PNG"), ("c.jpeg", "JPEG")):
            (directory / FOLDER / name).write_bytes(MAKERS["image"](format=format))
            (directory / FOLDER / name).with_suffix(".txt").write_text("a cat")

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change, add or remove an image or a prompt."""
        names = [f"{FOLDER}/{name}" for name in files_of(sound / FOLDER)]
        images = [name for name in names if not name.endswith(".txt")]
        kind = rng.choice(("bytes", "odd", "text", "raw", "add", "file"))
        if kind == "bytes":
            name = rng.choice(images)
            return Case(self.name, [bytes_change((sound / name).read_bytes(), name, rng)])
        if kind == "odd":
            return Case(self.name, [odd_image(rng.choice(images), rng)])
        if kind == "text":
            return Case(self.name, [_text(f"{FOLDER}/a.txt", rng)])
        if kind == "raw":
            content = rng.choice(("ff", "fffe6100", "c3", "00", "efbbbf61"))
            return Case(self.name, [_inserted(f"{FOLDER}/c.txt", content)])
        if kind == "file":
            return Case(self.name, [file_change(rng.choice((*names, FOLDER)), rng)])
        return Case(self.name, _added(rng))

    def attempt(self, directory: Path, output: Path) -> str:  # noqa: ARG002
        """Read the examples."""
        examples = read_examples(directory / FOLDER)
        for example in examples:
            # as calibration does
            example.image.resize((64, 64))
        return digest(*(example.image for example in examples), *(example.prompt for example in examples))


def _text(name: str, rng: Random) -> dict[str, Any]:
    return {"kind": "write", "file": name, "content": rng.choice(TEXTS)}


def _inserted(name: str, content: str) -> dict[str, Any]:
    return {"kind": "bytes", "file": name, "at": 0, "remove": 0, "insert": content}


def _added(rng: Random) -> list[dict[str, Any]]:
    """Return changes that add an image or something else, with a prompt or without."""
    name = f"{FOLDER}/{rng.choice(NAMES)}"
    changes = [rng.choice((odd_image(name, rng), {"kind": "directory", "file": name}, _text(name, rng)))]
    if rng.random() < 0.5:
        changes.append(_text(f"{name.rpartition('.')[0]}.txt", rng))
    return changes


TARGETS = (Calibrations(),)
