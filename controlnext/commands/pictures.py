"""Pictures from and to files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from controlnext.errors import InputError


def read_picture(path: Path) -> Image.Image:
    """The picture in a file as RGB; raises :class:`InputError` where it cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports damaged files by any of these
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot read picture {path}: {reason}; give a PNG, JPEG or WebP file") from error


def check_writable_name(path: Path) -> None:
    """Raise :class:`InputError` unless ``path`` can be written as a picture: a known ending, no folder."""
    if path.is_dir():
        raise InputError(f"output {path} is a folder; give the name of a picture file")
    formats = Image.registered_extensions()
    if formats.get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"output {path} names no kind of picture; accepted: .png, .jpg, .webp and others")
