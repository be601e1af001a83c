"""A stand-in for a GPU's memory, its stream and its CUDA graphs, in main memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from controlnext.errors import WorkError

ALIGNMENT = 256


class HostCuda:
    """A stand-in for :class:`controlnext.engines.tensorrt.cuda.Cuda`; ``counts`` has the number of each
    call."""

    def __init__(self, index: int = 0, _extra: str = "") -> None:
        self.index, self.stream = index, 7
        self.memory: dict[int, np.ndarray] = {}
        self.counts, self.uploads = Counter[str](), Counter[str]()
        self.jobs: list[Callable[[], None]] | None = None
        self.records_fail = self.allocations_fail = False
        self.closed = False
        self._next = 4096

    def use(self) -> None:
        assert not self.closed

    def allocate(self, size: int) -> int:
        if self.allocations_fail:
            raise WorkError("CUDA on GPU 0: cudaMalloc: out of memory")
        self.counts["allocate"] += 1
        # addresses are never given out twice: what uses an old one finds nothing there
        address, self._next = self._next, self._next + -(-size // ALIGNMENT) * ALIGNMENT
        self.memory[address] = np.full(size, 255, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def upload(self, array: np.ndarray, address: int) -> None:
        self.counts["upload"] += 1
        assert array.flags.c_contiguous
        self.memory[address][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, address: int, array: np.ndarray) -> None:
        array[...] = self.read(address, array.shape, array.dtype)

    def read(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory[address][:size].copy().view(dtype).reshape(shape)

    def synchronize(self) -> None:
        self.counts["synchronize"] += 1

    def record(self, work: Callable[[], None]) -> Any:
        if self.records_fail:
            raise WorkError("CUDA on GPU 0: operation not permitted when stream is capturing")
        self.counts["record"] += 1
        self.jobs = []
        recorded = self.jobs
        try:
            work()
        finally:
            self.jobs = None
        return recorded

    def replay(self, recorded: list[Callable[[], None]]) -> None:
        self.counts["replay"] += 1
        for job in recorded:
            job()

    def forget(self, recorded: list[Callable[[], None]]) -> None:
        self.counts["forget"] += 1
        recorded.clear()

    def close(self) -> None:
        assert not self.memory, "memory is left on the GPU"
        self.closed = True
