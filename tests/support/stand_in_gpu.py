"""A stand-in for a GPU and TensorRT, which runs the same calls in main memory."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import Gpu
from controlnext.engines.tensorrt.store import (
    ENGINE,
    Entry,
    Key,
    engine_directory,
    graph_key,
    new_engine,
    write_entry,
)
from controlnext.errors import WorkError
from controlnext.tensor_spec import bind
from support.fake_bundle import fake_denoiser

GPU = Gpu("NVIDIA RTX 4000", "sm89")
HARDWARE = {"tensorrt": "sm89-nvidia-rtx-4000", "tensorrt-rtx": "portable"}
VERSION = "1.2.3"
Compute = Callable[[dict[str, np.ndarray]], np.ndarray]
SMALLEST = {"batch": 1, "control_batch": 1, "height": 2, "width": 2, "sequence": 7}
LARGEST = {"batch": 4, "control_batch": 4, "height": 6, "width": 6, "sequence": 7}


class HostCuda:
    """A stand-in for :class:`controlnext.engines.tensorrt.cuda.Cuda`; ``counts`` has the number of each
    call."""

    def __init__(self, index: int = 0, _extra: str = "") -> None:
        self.index, self.stream = index, 7
        self.memory: dict[int, np.ndarray] = {}
        self.counts, self.uploads = Counter[str](), Counter[str]()
        self.jobs: list[Callable[[], None]] | None = None
        self.records_fail = False
        self.closed = False
        self._next = 4096

    def use(self) -> None:
        assert not self.closed

    def allocate(self, size: int) -> int:
        self.counts["allocate"] += 1
        # addresses are never given out twice: what uses an old one finds nothing there
        address, self._next = self._next, self._next + size
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
        work()
        recorded, self.jobs = self.jobs, None
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


class Machine:
    """The library, the GPU and the calls to them; attributes select failures.

    ``compute`` is what the engine does, from inputs by name to its one output.
    """

    def __init__(self, manifest: Manifest, folder: str) -> None:
        self.compute: Compute = fake_denoiser
        self.inputs = [tensor.spec() for tensor in manifest.graphs[folder].inputs]
        (self.output,) = [tensor.spec() for tensor in manifest.graphs[folder].outputs]
        self.cudas: list[HostCuda] = []
        self.config = SimpleNamespace()
        self.refitted: list[str] = []
        self.shapes_set: list[str] = []
        self.fails_to = ""
        self.kernels, self.accepts_kernels = b"compiled for sizes", True
        self.kernels_given: list[bytes] = []

    @property
    def cuda(self) -> HostCuda:
        """Return the context of the engine that was opened last."""
        return self.cudas[-1]

    def make_cuda(self, index: int, extra: str) -> HostCuda:
        self.cudas.append(HostCuda(index, extra))
        return self.cuda

    def library(self, name: str) -> ModuleType:
        library = ModuleType(name)
        library.__spec__ = ModuleSpec(name, None)
        library.__version__ = VERSION  # type: ignore[attr-defined]
        library.ILogger = _Logger  # type: ignore[attr-defined]
        library.Runtime = partial(_Runtime, self)  # type: ignore[attr-defined]
        library.Refitter = partial(_Refitter, self)  # type: ignore[attr-defined]
        library.OnnxParserRefitter = partial(_ParserRefitter, self)  # type: ignore[attr-defined]
        library.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")  # type: ignore[attr-defined]
        return library


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class _Runtime:
    def __init__(self, machine: Machine, log: Any) -> None:
        self._machine, self._log = machine, log

    def deserialize_cuda_engine(self, content: Any) -> Any:
        self._log.log(_Logger.INFO, "loading")
        if bytes(memoryview(content)) != b"an engine" or self._machine.fails_to == "load":
            self._log.log(_Logger.ERROR, "the magic tag does not match")
            return None
        return _Engine(self._machine, self._log)


class _Engine:
    def __init__(self, machine: Machine, log: Any) -> None:
        self._machine, self._log = machine, log

    def create_runtime_config(self) -> Any:
        machine = self._machine
        machine.config = SimpleNamespace(
            create_runtime_cache=partial(_Cache, machine), set_runtime_cache=lambda _cache: True
        )
        return machine.config

    def create_execution_context(self, config: Any) -> Any:
        assert config is self._machine.config
        return None if self._machine.fails_to == "start" else _Context(self._machine, self._log)


class _Cache:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def deserialize(self, content: bytes) -> bool:
        self._machine.kernels_given.append(content)
        return self._machine.accepts_kernels

    def serialize(self) -> bytes:
        return self._machine.kernels


class _Refitter:
    def __init__(self, machine: Machine, _engine: Any, _log: Any) -> None:
        self._machine = machine

    def refit_cuda_engine(self) -> bool:
        return bool(self._machine.refitted)


class _ParserRefitter:
    def __init__(self, machine: Machine, _refitter: Any, log: Any) -> None:
        self._machine, self._log = machine, log

    def refit_from_file(self, path: str) -> bool:
        if self._machine.fails_to == "refit":
            self._log.log(_Logger.ERROR, "a weight is missing")
            return False
        self._machine.refitted.append(path)
        return True


class _Context:
    """An execution context that computes the fake denoiser from the memory at its addresses when it runs."""

    def __init__(self, machine: Machine, log: Any) -> None:
        self._machine, self._log = machine, log
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._machine.shapes_set.append(name)
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        assert name == self._machine.output.name
        empty = {s.name: np.empty(self._shapes[s.name], s.dtype) for s in self._machine.inputs}
        return list(self._machine.output.shape_at(bind(self._machine.inputs, empty, "engine")))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        machine = self._machine
        assert stream == machine.cuda.stream
        if machine.fails_to == "run":
            self._log.log(_Logger.ERROR, "misaligned address")
            return False
        output = machine.output
        places = {s: (self._addresses[s.name], self._shapes[s.name]) for s in machine.inputs}
        job = partial(_compute, machine, places, self._addresses[output.name])
        if machine.cuda.jobs is None:
            job()
        else:
            machine.cuda.jobs.append(job)
        return True


def _compute(machine: Machine, places: dict[Any, Any], target: int) -> None:
    cuda = machine.cuda
    feed = {spec.name: cuda.read(*place, spec.dtype) for spec, place in places.items()}
    result = machine.compute(feed).astype(np.float32)
    cuda.memory[target][: result.nbytes] = np.frombuffer(result.tobytes(), np.uint8)


def put_in_place(monkeypatch: pytest.MonkeyPatch, bundle: Path, folder: str = "unet") -> Machine:
    """Install the stand-in for a GPU and both libraries, which run the engine of this graph."""
    machine = Machine(read_manifest(bundle), folder)
    for flavor in FLAVORS.values():
        monkeypatch.setitem(sys.modules, flavor.module, machine.library(flavor.module))
    for module in ("engines.tensorrt.backend", "engines.tensorrt.flavors"):
        monkeypatch.setattr(f"controlnext.{module}.find_gpu", lambda _index=0: GPU)
    monkeypatch.setattr("controlnext.engines.tensorrt.backend.Cuda", machine.make_cuda)
    return machine


def write_engine(
    bundle: Path,
    backend: str,
    folder: str = "unet",
    smallest: dict[str, int] = SMALLEST,
    largest: dict[str, int] = LARGEST,
    **changes: Any,
) -> Path:
    """Write an engine of this graph to the bundle's store and return its directory, with ``changes`` to its
    key."""
    manifest = read_manifest(bundle)
    specs = [tensor.spec() for tensor in manifest.graphs[folder].inputs]
    kinds = (smallest, smallest, largest)
    key = Key(
        **graph_key(manifest, folder),
        backend=backend,
        version=VERSION,
        hardware=HARDWARE[backend],
        profile={spec.name: [list(spec.shape_at(sizes)) for sizes in kinds] for spec in specs},
        options={"strip_weights": False},
    )
    key = msgspec.structs.replace(key, **changes)
    place = engine_directory(bundle, backend, key.hardware, folder)
    with new_engine(place) as made:
        (made / ENGINE).write_bytes(b"an engine")
        write_entry(made, Entry(key, 1.0))
    return place
