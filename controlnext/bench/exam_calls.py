"""The calls of an exam as a file, for the processes that make its images: data alone, no pickle."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

_IMAGE, _ARRAY = "image\0", "array\0"
"""Keys of what stands for an image or an array; no argument has such a name."""


def write_calls(file: Path, calls: Iterable[Mapping[str, Any]]) -> None:
    """Write the arguments of calls: what JSON has, PIL images, NumPy arrays, and lists of these."""
    plain = [{name: _plain(value) for name, value in call.items()} for call in calls]
    file.write_bytes(msgspec.msgpack.encode(plain))


def read_calls(file: Path) -> list[dict[str, Any]]:
    """Return the arguments that :func:`write_calls` wrote."""
    calls: list[dict[str, Any]] = msgspec.msgpack.decode(file.read_bytes())
    return [{name: _restored(value) for name, value in call.items()} for call in calls]


def _plain(value: Any) -> Any:
    content = io.BytesIO()
    if isinstance(value, Image.Image):
        value.save(content, "PNG")
        return {_IMAGE: content.getvalue()}
    if isinstance(value, np.ndarray):
        np.save(content, value, allow_pickle=False)
        return {_ARRAY: content.getvalue()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(one) for one in value]
    if isinstance(value, dict) and _IMAGE in value:
        image = Image.open(io.BytesIO(value[_IMAGE]))
        image.load()
        return image
    if isinstance(value, dict) and _ARRAY in value:
        return np.load(io.BytesIO(value[_ARRAY]), allow_pickle=False)
    return value
