"""One error for running out of memory, which names the size and the arguments that save memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from controlnext.errors import OutOfMemoryError, WorkError

Item = TypeVar("Item")

_MESSAGES = re.compile(
    # ONNX Runtime's arena, C++ in two spellings, CUDA and the TensorRTs
    r"allocate memory|smaller than requested bytes|bad[_ ]alloc|out ?of ?memory",
    re.IGNORECASE,
)
"""Messages of libraries that ran out of memory: they have no error class for it."""


@dataclass(frozen=True)
class MemoryGuard:
    """Reports running out of memory at a size in pixels; ``savers``: arguments that save memory."""

    height: int
    width: int
    savers: tuple[str, ...]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Raise :class:`OutOfMemoryError` if the block runs out of memory."""
        try:
            yield
        except (MemoryError, WorkError) as error:
            told = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)
            if told or _MESSAGES.search(str(error)):
                raise OutOfMemoryError(self.width, self.height, self.savers, str(error)) from error
            raise

    def each(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield ``items``, each made within :meth:`watch`."""
        with self.watch():
            yield from items
