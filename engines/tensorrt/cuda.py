"""The CUDA calls that engines need: memory, copies, a stream, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from controlnext.closeable import Closeable
from controlnext.errors import InputError, WorkError
from controlnext.optional import extra


class Cuda(Closeable):
    """A stream of a GPU; all work runs on it in order.

    Every method raises :class:`~controlnext.errors.WorkError` if the CUDA call fails.
    """

    def __init__(self, index: int, extra_name: str) -> None:
        """Create a stream on GPU number ``index``; ``extra_name``: the extra that installs CUDA's bindings.

        Raises :class:`~controlnext.errors.MissingDependencyError` if CUDA's bindings are not installed, and
        :class:`~controlnext.errors.InputError` if there is no such GPU.
        """
        self._runtime = _import_runtime(extra_name)
        self.index = index
        error, count = self._runtime.cudaGetDeviceCount()
        if error.value or index >= count:
            found = self._text(error) if error.value else f"the number of GPUs is {count}"
            raise InputError(
                f"GPU {index} cannot be used: {found}; check NVIDIA's driver, or set `backend` to onnxruntime"
            )
        self.use()
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def use(self) -> None:
        """Make this GPU the current one of this thread."""
        self._call("cudaSetDevice", self.index)

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes on the GPU and return their address."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Free the memory at ``address``."""
        self._call("cudaFree", address)

    def upload(self, array: np.ndarray, address: int) -> None:
        """Start copying a contiguous array to the GPU; the array must live until :meth:`synchronize`."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, address: int, array: np.ndarray) -> None:
        """Start copying from the GPU into a contiguous array."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Any:
        """Record ``work`` as a CUDA graph for :meth:`replay`, without running it."""
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
        """Launch a graph that :meth:`record` returned."""
        self._call("cudaGraphLaunch", recorded, self.stream)

    def forget(self, recorded: Any) -> None:
        """Release a graph that :meth:`record` returned."""
        self._call("cudaGraphExecDestroy", recorded)

    def close(self) -> None:
        """Release resources: destroy the stream."""
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
