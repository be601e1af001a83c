"""LoRAs of a directory, by the names of their files."""

from __future__ import annotations

from pathlib import Path

from controlnext.errors import InputError
from controlnext.runtime.loras.tensor_file import SUFFIX


def lora_files(directory: str | Path) -> dict[str, Path]:
    """Return the LoRAs in a directory by name, that of the file without its suffix.

    Raises :class:`InputError` for a directory without any.
    """
    place = Path(directory).expanduser()
    files = sorted(place.iterdir()) if place.is_dir() else []
    found = {file.stem: file for file in files if file.suffix.lower() == SUFFIX and file.is_file()}
    if not found:
        problem = f"has no {SUFFIX} file" if place.is_dir() else "is not a directory"
        raise InputError(
            f"{directory} {problem}; give `loras` a directory of LoRAs as {SUFFIX} files", argument="loras"
        )
    return found
