"""What engines need of CUDA: memory, copies, a stream, and work that is recorded to be repeated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from controlnext.closeable import Closeable
from controlnext.errors import InputError, WorkError
from controlnext.optional import extra


class Cuda(Closeable):
    """A stream of the GPU of this number; all that is done comes one after the other on it.

    Every method raises :class:`~controlnext.errors.WorkError` where CUDA refuses.
    """

    def __init__(self, index: int, extra_name: str) -> None:
        """``extra_name``: the extra of this package whose library is to run here.

        Raises :class:`~controlnext.errors.MissingDependencyError` where CUDA's bindings are not installed,
        and :class:`~controlnext.errors.InputError` where there is no such GPU.
        """
        self._runtime = _import_runtime(extra_name)
        self.index = index
        error, count = self._runtime.cudaGetDeviceCount()
        if error.value or index >= count:
            found = self._text(error) if error.value else f"there are {count}"
            raise InputError(
                f"GPU {index} cannot be used: {found}; check NVIDIA's driver or give backend onnxruntime"
            )
        self.use()
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def use(self) -> None:
        """Let the calls that follow in this thread mean this GPU."""
        self._call("cudaSetDevice", self.index)

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes on the GPU."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def upload(self, array: np.ndarray, address: int) -> None:
        """Begin to copy a contiguous array to the GPU; it has to stay until :meth:`synchronize`."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, address: int, array: np.ndarray) -> None:
        """Begin to fill a contiguous array from the GPU."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def synchronize(self) -> None:
        """Wait until all that was begun is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Any:
        """What ``work`` does on the stream, for :meth:`replay`; nothing of it is done now."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        with ExitStack() as made:
            try:
                work()
            finally:
                graph = self._call("cudaStreamEndCapture", self.stream)
                made.callback(self._call, "cudaGraphDestroy", graph)
            return self._call("cudaGraphInstantiate", graph, 0)

    def replay(self, recorded: Any) -> None:
        self._call("cudaGraphLaunch", recorded, self.stream)

    def forget(self, recorded: Any) -> None:
        """Release what :meth:`record` made."""
        self._call("cudaGraphExecDestroy", recorded)

    def close(self) -> None:
        self._call("cudaStreamDestroy", self.stream)

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(self._runtime.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, size, direction, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, name)(*arguments)
        if error.value:
            raise WorkError(f"CUDA on GPU {self.index}: {name}: {self._text(error)}")
        return results[0] if results else None

    def _text(self, error: Any) -> str:
        text: bytes = self._runtime.cudaGetErrorString(error)[1]
        return text.decode()


def _import_runtime(name: str) -> Any:
    with extra(name, "CUDA's Python binding"):
        from cuda.bindings import runtime
    return runtime
