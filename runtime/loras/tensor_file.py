"""Files of tensors (``.safetensors``), read with NumPy alone: a LoRA is a few hundred small ones."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from controlnext.errors import CheckpointError
from controlnext.regular import check_regular
from controlnext.types import FloatArray

SUFFIX = ".safetensors"
_TYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_LENGTH = 8
"""Bytes of the number, in front of the file, that says how long the header is."""
_LONGEST = 100_000_000
"""Bytes of the longest header, as in the library safetensors."""


class _Tensor(msgspec.Struct, frozen=True):
    """An entry of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by name, in float32, and its metadata."""

    tensors: Mapping[str, FloatArray]
    metadata: Mapping[str, str]


def read_tensors(path: Path) -> TensorFile:
    """Read a whole file of floating-point tensors.

    Raises :class:`CheckpointError` for a file that is missing or damaged, and for other types.
    """
    try:
        content = _mapped(path)
        length = int.from_bytes(content[:_LENGTH], "little")
        if length > _LONGEST:
            raise ValueError(f"its header has {length} bytes, more than {_LONGEST}")
        header = msgspec.json.decode(content[_LENGTH : _LENGTH + length], type=dict[str, Any])
        metadata = msgspec.convert(header.pop("__metadata__", {}), dict[str, str])
        entries = msgspec.convert(header, dict[str, _Tensor])
        data = memoryview(content)[_LENGTH + length :]
        tensors = {name: _array(path, name, entry, data) for name, entry in entries.items()}
    # msgspec's is no ValueError before 0.21
    except (OSError, msgspec.DecodeError, RecursionError, OverflowError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable {SUFFIX} file: {error}; get the file again"
        ) from error
    return TensorFile(tensors, metadata)


def _mapped(path: Path) -> mmap.mmap:
    """Map a file to memory: what the header does not name is not read."""
    with check_regular(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _array(path: Path, name: str, entry: _Tensor, data: memoryview) -> FloatArray:
    if entry.dtype not in _TYPES:
        raise CheckpointError(
            f"{path}: {name} is of type {entry.dtype}; accepted: {', '.join(_TYPES)}; convert the file"
        )
    dtype, (start, stop) = _TYPES[entry.dtype], entry.data_offsets
    if stop - start != math.prod(entry.shape) * dtype.itemsize or not 0 <= start <= stop <= len(data):
        raise ValueError(f"{name} has {stop - start} bytes of {len(data)} for {list(entry.shape)}")
    array = np.frombuffer(data[start:stop], dtype).reshape(entry.shape)
    if entry.dtype == "BF16":
        # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
