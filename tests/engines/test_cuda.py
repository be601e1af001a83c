"""The calls to CUDA, on a stand-in for its bindings: their order, what they give back, what they report."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controlnext.engines.tensorrt.cuda import Cuda
from controlnext.errors import InputError, MissingDependencyError, WorkError

RESULTS = {
    "cudaGetDeviceCount": [2],
    "cudaStreamCreateWithFlags": [70],
    "cudaMalloc": [4096],
    "cudaStreamEndCapture": ["graph"],
    "cudaGraphInstantiate": ["recorded"],
}


class _Bindings(ModuleType):
    """Answers every call; ``failing`` names one that does not work."""

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: list[tuple[Any, ...]] = []
        self.failing = ""
        self.cudaStreamNonBlocking = 1
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="local")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            if name == "cudaGetErrorString":
                return SimpleNamespace(value=0), b"out of memory"
            self.calls.append((name, *arguments))
            failed = name == self.failing
            return SimpleNamespace(value=int(failed)), *(RESULTS.get(name, []) if not failed else [None])

        return call


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> _Bindings:
    bindings, package = _Bindings(), ModuleType("cuda.bindings")
    package.runtime = bindings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings)
    return bindings


def test_copies_go_by_the_stream_of_the_gpu(bindings: _Bindings) -> None:
    array = np.zeros((3, 4), np.float32)
    with Cuda(1, "rtx") as cuda:
        address = cuda.allocate(48)
        cuda.upload(array, address)
        cuda.download(address, array)
        cuda.synchronize()
        cuda.free(address)
    host = array.ctypes.data
    assert bindings.calls == [
        ("cudaGetDeviceCount",),
        ("cudaSetDevice", 1),
        ("cudaStreamCreateWithFlags", 1),
        ("cudaMalloc", 48),
        ("cudaMemcpyAsync", 4096, host, 48, "up", 70),
        ("cudaMemcpyAsync", host, 4096, 48, "down", 70),
        ("cudaStreamSynchronize", 70),
        ("cudaFree", 4096),
        ("cudaStreamDestroy", 70),
    ]


def test_work_is_recorded_and_repeated(bindings: _Bindings) -> None:
    cuda = Cuda(0, "tensorrt")
    bindings.calls.clear()
    recorded = cuda.record(lambda: bindings.calls.append(("work",)))
    cuda.replay(recorded)
    cuda.forget(recorded)
    assert bindings.calls == [
        ("cudaStreamBeginCapture", 70, "local"),
        ("work",),
        ("cudaStreamEndCapture", 70),
        ("cudaGraphInstantiate", "graph", 0),
        ("cudaGraphDestroy", "graph"),
        ("cudaGraphLaunch", "recorded", 70),
        ("cudaGraphExecDestroy", "recorded"),
    ]


@pytest.mark.parametrize("failing", ["cudaStreamEndCapture", "cudaGraphInstantiate", "work"])
def test_the_stream_is_of_use_after_a_failed_recording(bindings: _Bindings, failing: str) -> None:
    """Recording has ended, and the graph of a recording that cannot be used is given back."""
    cuda = Cuda(0, "tensorrt")
    bindings.failing = failing

    def work() -> None:
        if failing == "work":
            raise WorkError("refused")

    with pytest.raises(WorkError):
        cuda.record(work)
    done = [name for name, *_ in bindings.calls]
    assert "cudaStreamEndCapture" in done
    assert ("cudaGraphDestroy" in done) == (failing != "cudaStreamEndCapture")


def test_failures_say_what_and_where(bindings: _Bindings) -> None:
    cuda = Cuda(1, "rtx")
    bindings.failing = "cudaMalloc"
    with pytest.raises(WorkError, match=r"^CUDA on GPU 1: cudaMalloc: out of memory$"):
        cuda.allocate(1 << 40)


def test_gpus_that_are_not_there(bindings: _Bindings) -> None:
    with pytest.raises(
        InputError, match="GPU 2 cannot be used: the number of GPUs is 2; check NVIDIA's driver"
    ):
        Cuda(2, "rtx")
    bindings.failing = "cudaGetDeviceCount"
    with pytest.raises(InputError, match="GPU 0 cannot be used: out of memory; check NVIDIA's driver"):
        Cuda(0, "rtx")


def test_missing_bindings_name_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "controlnext\[tensorrt\]"'):
        Cuda(0, "tensorrt")


def test_the_real_bindings_have_every_call() -> None:
    """Of which the stand-in would not know."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    names = (
        "GetDeviceCount GetErrorString SetDevice StreamCreateWithFlags StreamDestroy StreamSynchronize Malloc"
        " Free MemcpyAsync StreamBeginCapture StreamEndCapture GraphInstantiate GraphLaunch GraphDestroy"
        " GraphExecDestroy StreamNonBlocking"
    )
    assert not [name for name in names.split() if not hasattr(runtime, f"cuda{name}")]
    assert runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal.name
    assert runtime.cudaMemcpyKind.cudaMemcpyHostToDevice.value == 1
    assert runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost.value == 2
    # its text needs a driver with some versions
    assert runtime.cudaError_t.cudaErrorMemoryAllocation.value == 2
