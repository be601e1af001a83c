"""Pictures from and to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

from controlnext.closing import Closing
from controlnext.errors import InputError
from controlnext.files import check_writable, new_file

Change = Callable[[Image.Image], Image.Image]
"""What is done to every control picture after it was read."""


def read_picture(path: Path) -> Image.Image:
    """The picture in a file as RGB, upright; raises :class:`InputError` where it cannot be read."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports damaged files by any of these
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot read picture {path}: {reason}; give a PNG, JPEG or WebP file") from error


class PictureFiles(Closing):
    """The files of a run that makes pictures: ``output``, or numbered ones beside it where there are several.

    Raises :class:`InputError` unless ``output`` can be written as a picture: a known ending, no folder.
    """

    subject = "prompt"
    """The option that such a run cannot do without."""
    takes = ()
    """The options that are arguments of this class."""

    def __init__(self, output: Path | None) -> None:
        self.output = Path("picture.png") if output is None else output
        if self.output.is_dir():
            raise InputError(f"output {output} is a folder; give the name of a picture file")
        formats = Image.registered_extensions()
        if formats.get(self.output.suffix.lower()) not in Image.SAVE:
            raise InputError(
                f"output {output} names no kind of picture; accepted: .png, .jpg, .webp and others"
            )
        check_writable(self.output)

    def control(self, path: Path, change: Change) -> Image.Image:
        """The control picture in a file."""
        return change(read_picture(path))

    def save(self, images: Iterator[Image.Image]) -> list[Path]:
        """Write the pictures, each to a file; returns where to."""
        pictures, paths, stem = list(images), [self.output], self.output.stem
        if len(pictures) > 1:
            paths = [self.output.with_stem(f"{stem}-{number + 1}") for number in range(len(pictures))]
        for path, image in zip(paths, pictures, strict=True):
            with new_file(path) as aside:
                image.save(aside)
        return paths

    def close(self) -> None:
        """Pictures hold nothing open."""
