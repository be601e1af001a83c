"""The recipe of an image: what it was made with, as text in its PNG file."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from controlnext.bundle.files import sha256
from controlnext.errors import InputError
from controlnext.regular import check_regular
from controlnext.secrets import hidden, without_secrets

PARAMETERS, RECIPE = "parameters", "controlnext"
"""The text chunks of a PNG: the one that web UIs read, in AUTOMATIC1111's form, and that of this package."""
SCHEMA = 1
LONGEST = 256 << 10
"""Letters of a chunk that is written or read: Pillow reads up to four times as many."""
logger = logging.getLogger(__name__)
_NEEDS_QUOTES = re.compile(r"[,:\n\"]")


class InputFile(msgspec.Struct, frozen=True):
    """A file that a call was given: its name (:func:`portable_name`) and the SHA-256 of its content."""

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> InputFile:
        """Return that of a file; a directory has no checksum."""
        return cls(portable_name(path), sha256(check_regular(path)) if path.is_file() else "")


class BundleOrigin(msgspec.Struct, frozen=True):
    """The bundle that made an image: the name of its directory, the SHA-256 of its manifest, its kind."""

    name: str
    manifest_sha256: str
    family: str
    variant: str
    precision: str


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle, the arguments and the files that an image was made with.

    Attributes:
        schema: of this form, counted from 1.
        version: of this package.
        bundle: the bundle.
        backend: the backend and device of the denoiser.
        arguments: those of the pipeline's call that were given, and its defaults; not images and files.
        files: the files of images and LoRAs by argument, LoRAs in the order in which they were applied.
        preprocess: the preprocessor of the control images.
        preprocessor_model: its files, as they were given.
        number, count: which of how many images of the call it is, counted from 1.
    """

    schema: int
    version: str
    bundle: BundleOrigin
    backend: str
    arguments: dict[str, Any]
    files: dict[str, list[InputFile]] = {}
    preprocess: str | None = None
    preprocessor_model: list[str] = []
    number: int = 1
    count: int = 1

    def of_image(self, number: int, count: int) -> Recipe:
        """Return the recipe of one of the images of the call."""
        return msgspec.structs.replace(self, number=number, count=count)

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as JSON, without secrets."""
        found: dict[str, Any] = hidden(msgspec.to_builtins(self))
        return found

    def parameters(self, size: tuple[int, int]) -> str:
        """Return the text that web UIs read, for an image of this width and height."""
        given, each = self.arguments, self.arguments.get("num_images_per_prompt", 1)
        row = (self.number - 1) // each
        lines = [_row_of(given.get("prompt"), row)]
        if negative := _row_of(given.get("negative_prompt"), row):
            lines.append(f"Negative prompt: {negative}")
        facts = {
            "Steps": given.get("num_inference_steps"),
            "Sampler": given.get("sampler"),
            "CFG scale": given.get("guidance_scale"),
            "Seed": given.get("seed"),
            "Size": f"{size[0]}x{size[1]}",
            "Model hash": self.bundle.manifest_sha256[:10],
            "Model": self.bundle.name,
            "Denoising strength": given.get("strength"),
            "Batch pos": self.number - 1 if self.count > 1 else None,
            "Batch size": self.count if self.count > 1 else None,
            "Control scale": given.get("control_scale"),
            "LoRAs": given.get("lora"),
            "Version": f"controlnext {self.version}",
        }
        listed = [f"{name}: {_quoted(value)}" for name, value in facts.items() if value is not None]
        return without_secrets("\n".join([*lines, ", ".join(listed)]))


def portable_name(path: PurePath) -> str:
    """Return the name of a file as it is written into images: a path without directories of this machine.

    A relative path stays as it is, of any other the last part is left.
    """
    inside = not path.is_absolute() and ".." not in path.parts
    return path.as_posix() if inside else path.name


def text_chunks(recipe: Recipe, size: tuple[int, int]) -> PngImagePlugin.PngInfo | None:
    """Return the chunks of a recipe for a PNG of this width and height; None, with a warning, if they would
    be too long."""
    texts = {PARAMETERS: _encodable(recipe.parameters(size)), RECIPE: json.dumps(recipe.as_json())}
    if any(len(text) > LONGEST for text in texts.values()):
        logger.warning("the image is written without its arguments, which have more than %d letters", LONGEST)
        return None
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    return chunks


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in an image file.

    Raises :class:`InputError` for a file that is not a PNG, has none, or one that cannot be read.
    """
    recipe, parameters = read_chunks(path)
    if recipe is None:
        told = "the parameters of another program" if parameters else "no arguments"
        raise InputError(f"{path} has {told} in it; give a PNG that run, batch or a server wrote")
    return recipe


def read_chunks(path: Path) -> tuple[Recipe | None, str | None]:
    """Return the recipe in a PNG file, and the text that web UIs read, as far as it has them.

    Nothing is decoded but the text that stands before the image. Raises :class:`InputError` for any other
    file, and for damaged or oversized text.
    """
    try:
        with Image.open(check_regular(path), formats=("PNG",)) as image:
            texts = {name: image.info.get(name) for name in (PARAMETERS, RECIPE)}
    except Exception as error:  # the errors of Pillow's decoders for damaged files share no other class
        told = getattr(error, "strerror", None) or str(error)
        reason = (
            "it is not a PNG file, or a damaged one" if isinstance(error, UnidentifiedImageError) else told
        )
        raise InputError(f"cannot read the arguments in {path}: {reason}; give a PNG image") from error
    for name, text in texts.items():
        if isinstance(text, str) and len(text) > LONGEST:
            raise InputError(
                f"cannot read the arguments in {path}: its text {name!r} has {len(text)} letters, at most"
                f" {LONGEST} are read; give another image"
            )
    parameters, recipe = (text if isinstance(text, str) else None for text in texts.values())
    return None if recipe is None else _parsed(path, recipe), parameters


def _parsed(path: Path, text: str) -> Recipe:
    try:
        recipe = msgspec.json.decode(text.encode(), type=Recipe)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InputError(f"cannot read the arguments in {path}: {error}; give another image") from error
    if recipe.schema > SCHEMA:
        raise InputError(
            f"the arguments in {path} have schema {recipe.schema}, this version reads up to {SCHEMA}; install"
            " a newer controlnext"
        )
    return recipe


def _row_of(texts: Any, row: int) -> str:
    if isinstance(texts, Sequence) and not isinstance(texts, str):
        return str(texts[row]) if row < len(texts) else ""
    return "" if texts is None else str(texts)


def _quoted(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (Mapping, list)) else str(value)
    return json.dumps(text) if _NEEDS_QUOTES.search(text) else text


def _encodable(text: str) -> str:
    """Return a text without halves of characters and without zeros, which no chunk can have."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ")
