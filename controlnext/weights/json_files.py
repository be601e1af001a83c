"""Reading of JSON configuration files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controlnext.errors import CheckpointError, first_line
from controlnext.weights.lazy import check_is_file

INDEX = "model_index.json"
_LARGEST = 1 << 28
"""Bytes of the largest configuration or vocabulary; the largest published ones have a tenth."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises :class:`CheckpointError` if the file is missing, damaged or not an
    object."""
    check_plain(path)
    try:
        # some editors begin a file with a byte order mark
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; get the directory again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON: {first_line(error)}; get the file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; get the file again")
    return content


def check_plain(path: Path) -> None:
    """Raise :class:`CheckpointError` for what is there in place of a configuration and cannot be read as a
    whole: a pipe, a device, a file larger than any."""
    check_is_file(path, "get the directory again")
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, more than {_LARGEST}; get it again")


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Read a JSON object as :func:`read_json` does; return an empty one if the file is missing."""
    return read_json(path) if path.is_file() else {}
