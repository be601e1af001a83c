"""Read and write image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from controlnext.bundle.files import check_writable, new_file
from controlnext.closeable import Closeable
from controlnext.errors import InputError, MissingDependencyError
from controlnext.image_input import ImageReader, open_image
from controlnext.runtime.media.recipe import Recipe, text_chunks

Change = Callable[[Image.Image], Image.Image]
"""A function that is applied to every control image after it is opened."""
MakeRecipe = Callable[[tuple[int, int]], Recipe]
"""Makes the recipe of a call's images of a width and height."""

PNG = ".png"
"""The suffix of the files that have recipes."""


def unchanged(image: Image.Image) -> Image.Image:
    """Return the image itself."""
    return image


def read_image(path: Path, change: Change | None = None) -> Image.Image:
    """Return the image in a file after ``change``, by default in mode RGB with 8 bits.

    Raises :class:`InputError` with the file's name if it cannot be read.
    """
    image = open_image(path)
    try:
        return (change or ImageReader(str(path)).read_rgb)(image)
    except MissingDependencyError:  # no fault of the file
        raise
    except InputError as error:
        raise type(error)(f"{path}: {error}", argument=error.argument) from error


class ImageFiles(Closeable):
    """The files of a run that makes images: ``output``, or numbered files beside it for several images.

    Raises :class:`InputError` if ``output`` cannot be written as an image: it must have the suffix of an
    image format and must not be a directory.
    """

    subject = "prompt"
    """The argument that such a run requires."""
    made = "images"
    """The name of its results."""
    takes = ()
    """The options that are passed to this class."""

    def __init__(self, output: Path | None) -> None:
        self.output = Path("image.png") if output is None else output
        if self.output.is_dir():
            raise InputError(
                f"output {output} is a directory; give the name of an image file", argument="output"
            )
        formats = Image.registered_extensions()
        if formats.get(self.output.suffix.lower()) not in Image.SAVE:
            raise InputError(
                f"output {output} does not have the suffix of an image format; accepted: .png, .jpg, .webp"
                " and others",
                argument="output",
            )
        check_writable(self.output)

    def control(self, path: Path, change: Change) -> Image.Image:
        """Return the control image in a file."""
        return read_image(path, change)

    def save(
        self,
        images: Iterator[Image.Image],
        directory: Path | None = None,
        make_recipe: MakeRecipe | None = None,
    ) -> list[Path]:
        """Write each image to a file, in another ``directory`` if one is given; return the paths.

        ``make_recipe``: PNG files get the recipe that it makes.
        """
        output = self.output if directory is None else directory / self.output.name
        made, paths, stem = list(images), [output], output.stem
        if len(made) > 1:
            paths = [output.with_stem(f"{stem}-{number + 1}") for number in range(len(made))]
        is_png = output.suffix.lower() == PNG
        recipe = make_recipe(made[0].size) if make_recipe and is_png else None
        for number, (path, image) in enumerate(zip(paths, made, strict=True), start=1):
            chunks: dict[str, Any] = {}
            if recipe is not None:
                chunks["pnginfo"] = text_chunks(recipe.of_image(number, len(made)), image.size)
            with new_file(path) as aside:
                image.save(aside, **chunks)
        return paths

    def close(self) -> None:
        """Do nothing: image files are not kept open."""
