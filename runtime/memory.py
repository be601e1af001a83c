"""Running out of memory as one error that says at which size, and what takes less."""

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
"""What libraries say that ran out of memory: their errors have no class of its own."""


@dataclass(frozen=True)
class MemoryGuard:
    """Watches what runs at a size in pixels; ``savers``: arguments of the pipeline that save memory."""

    height: int
    width: int
    savers: tuple[str, ...]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Raises :class:`OutOfMemoryError` where the block runs out of memory."""
        try:
            yield
        except (MemoryError, WorkError) as error:
            told = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)
            if told or _MESSAGES.search(str(error)):
                raise OutOfMemoryError(self.width, self.height, self.savers, str(error)) from error
            raise

    def each(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, each made within :meth:`watch`."""
        with self.watch():
            yield from items
