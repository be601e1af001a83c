"""Tensors that are read, computed or drawn one at a time, on access."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from controlnext.errors import CheckpointError, first_line, is_failure

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
"""Suffixes of files with weights, in upper or lower case; all but the first are pickles."""

_REOPEN_AFTER = 256 * 2**20

# prefixes that DataParallel and torch.compile add to every name
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read by ``read``; its shape is known before."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> LazyTensor:
        """Return ``function`` of this tensor, computed on access; the shape is found without reading."""
        shape = function(torch.empty(self.shape, device="meta")).shape
        return LazyTensor(tuple(shape), lambda: function(self.read()))

    @staticmethod
    def from_tensor(tensor: Tensor) -> LazyTensor:
        """Wrap a tensor that is already in memory."""
        return LazyTensor(tuple(tensor.shape), lambda: tensor)


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by state-dict name. Each access reads the tensor again, so that no two are in memory together.

    Raises :class:`CheckpointError` on access to a tensor that holds NaN or infinity, or other numbers than
    floating-point ones.
    """

    def __init__(self, entries: Mapping[str, LazyTensor], origin: str) -> None:
        self._entries = entries
        self._origin = origin

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._entries[name].read()
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{self._origin}: tensor {name} is of type {str(tensor.dtype).removeprefix('torch.')};"
                " weights are floating-point numbers; get an undamaged copy of them"
            )
        if not is_finite(tensor):
            raise CheckpointError(not_finite(self._origin, name))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def not_finite(origin: str, name: str) -> str:
    """Return the message about a tensor that is not finite."""
    return f"{origin}: tensor {name} holds NaN or infinity; get an undamaged copy of the weights"


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor is free of NaN and infinity (checked by minimum and maximum, ten times
    cheaper)."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.half() if tensor.element_size() == 1 else tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def is_weight_file(name: str) -> bool:
    """Return whether a file's suffix is that of a file with weights."""
    return name.lower().endswith(SUFFIXES)


def is_safetensors(name: str) -> bool:
    """Return whether a file's suffix is ``.safetensors``, in upper or lower case."""
    return name.lower().endswith(SUFFIXES[0])


def check_is_file(path: Path, fix: str = "give a file of weights") -> None:
    """Raise :class:`CheckpointError`, which says how to ``fix`` it, for what is there and is not a file: a
    pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a file; {fix}")


def read_file(path: Path) -> dict[str, LazyTensor]:
    """Read the tensors of a ``.safetensors`` file, or of a pickle that can be read without running code.

    The tensors of a pickle may be under ``state_dict``, as training frameworks save them. The prefixes that
    DataParallel and torch.compile add to all names are removed.

    Raises :class:`CheckpointError` for any other file and for a damaged one.
    """
    check_is_file(path)
    if is_safetensors(path.name):
        return _unwrapped(_SafetensorsFile(path).tensors())
    if is_weight_file(path.name):
        return _unwrapped(
            {name: LazyTensor.from_tensor(tensor.detach()) for name, tensor in _read_pickle(path).items()}
        )
    raise CheckpointError(f"{path} is not a weight file; accepted: {', '.join(SUFFIXES)}")


def _unwrapped(found: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    for prefix in _WRAPPERS:
        if found and all(name.startswith(prefix) for name in found):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in found.items()})
    return found


class _SafetensorsFile:
    """A memory-mapped file, mapped again from time to time so that the pages that were read can be freed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = self._open()
        self._read_bytes = 0

    def tensors(self) -> dict[str, LazyTensor]:
        with self._failures():
            names = self._handle.keys()
            shapes = {name: tuple(self._handle.get_slice(name).get_shape()) for name in names}
        return {name: LazyTensor(shape, partial(self._read, name)) for name, shape in shapes.items()}

    def _open(self) -> Any:
        with self._failures():
            return safe_open(str(self._path), "pt")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # of the library's own class, of torch's, or a panic
            if not is_failure(error):
                raise
            raise CheckpointError(
                f"{self._path} is not a readable .safetensors file: {first_line(error)}; get the file again"
            ) from error

    def _read(self, name: str) -> Tensor:
        if self._read_bytes > _REOPEN_AFTER:
            self._handle, self._read_bytes = self._open(), 0
        with self._failures():
            tensor: Tensor = self._handle.get_tensor(name)
        self._read_bytes += tensor.nbytes
        return tensor


def read_content(path: Path) -> Any:
    """Read the whole content of a small weight file: tensors by name, or what a pickle holds that can be read
    without running code. Raises :class:`CheckpointError` as :func:`read_file` does."""
    check_is_file(path)
    if not is_weight_file(path.name) or is_safetensors(path.name):
        return {name: tensor.read() for name, tensor in read_file(path).items()}
    return _unpickled(path)


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and would need its code to run: it is not loaded;"
            " get it as .safetensors"
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    content = _unpickled(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(map(_is_named_tensor, content.items())):
        keys = f" but {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else ""
        raise CheckpointError(
            f"{path} holds no tensors by name{keys}; accepted: a state dict, or one under 'state_dict'"
        )
    return content


def _is_named_tensor(entry: tuple[object, object]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)
