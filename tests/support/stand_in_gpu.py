"""A stand-in for a GPU and TensorRT, which runs the same calls in main memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakSet, ref

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
from controlnext.tensor_spec import TensorSpec, bind
from support.fake_bundle import CACHED, fake_denoiser
from support.host_cuda import ALIGNMENT, HostCuda

GPU = Gpu("NVIDIA RTX 4000", "sm89")
HARDWARE = {"tensorrt": "sm89-nvidia-rtx-4000", "tensorrt-rtx": "portable"}
VERSION = "1.2.3"
Compute = Callable[[dict[str, np.ndarray]], np.ndarray]
SMALLEST = {"batch": 1, "control_batch": 1, "height": 2, "width": 2, "sequence": 7}
LARGEST = {"batch": 4, "control_batch": 4, "height": 6, "width": 6, "sequence": 7}
SMALLEST |= {"lora_rows": 1, "lora_rank": 1}
LARGEST |= {"lora_rows": 4, "lora_rank": 4}
ACTIVATION_SIZE = 1000


class Machine:
    """The library, the GPU and the calls to them; attributes select failures.

    ``compute`` is what the engine does, from inputs by name to its one output; ``parts``: the inputs and
    outputs of the engine of each part of the graph.
    """

    def __init__(self, manifest: Manifest, folder: str) -> None:
        self.compute: Compute = fake_denoiser
        self.parts: dict[bytes, tuple[list[TensorSpec], list[TensorSpec]]] = {}
        for name in [name for name in manifest.parts if name.partition(".")[0] == folder]:
            graph = manifest.graph(name)
            outputs = [*graph.outputs, *(graph.shallow.features if graph.shallow else ())]
            sides = [[tensor.spec() for tensor in side] for side in (graph.inputs, outputs)]
            self.parts[_content(name)] = (sides[0], sides[1])
        self.cudas: list[HostCuda] = []
        self.config = SimpleNamespace()
        self.refitted: list[str] = []
        self.shapes_set: list[str] = []
        self.contexts = WeakSet[_Context]()
        self.most_contexts = 100
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
        strategies = SimpleNamespace(USER_MANAGED="user")
        library.ExecutionContextAllocationStrategy = strategies  # type: ignore[attr-defined]
        return library


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class _Runtime:
    def __init__(self, machine: Machine, log: Any) -> None:
        self._machine, self._log = machine, log

    def deserialize_cuda_engine(self, content: Any) -> Any:
        self._log.log(_Logger.INFO, "loading")
        part = self._machine.parts.get(bytes(memoryview(content)))
        if part is None or self._machine.fails_to == "load":
            self._log.log(_Logger.ERROR, "the magic tag does not match")
            return None
        return _Engine(self._machine, self._log, *part)


class _Engine:
    device_memory_size_v2 = ACTIVATION_SIZE

    def __init__(
        self, machine: Machine, log: Any, inputs: list[TensorSpec], outputs: list[TensorSpec]
    ) -> None:
        self._machine, self._log = machine, log
        self.inputs, self.outputs, self.cuda = inputs, outputs, machine.cuda
        self._config: Any = None

    def create_runtime_config(self) -> Any:
        machine = self._machine
        machine.config = self._config = config = SimpleNamespace(
            create_runtime_cache=partial(_Cache, machine), set_runtime_cache=lambda _cache: True
        )
        config.set_execution_context_allocation_strategy = partial(setattr, config, "strategy")
        return self._config

    def create_execution_context(self, config: Any) -> Any:
        machine = self._machine
        assert config is self._config
        if machine.fails_to == "start" or len(machine.contexts) >= machine.most_contexts:
            return None
        return _Context(machine, self._log, self, getattr(config, "strategy", None) != "user")


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
    """An execution context that computes the fake denoiser from the memory at its addresses when it runs.

    It refuses what a GPU would punish: a run without memory for activations, or with too little; a recording
    at shapes at which it has not run, or beside another; a replay after it changed or is gone.
    """

    def __init__(self, machine: Machine, log: Any, engine: _Engine, gives_memory: bool) -> None:
        self._machine, self._log = machine, log
        self._inputs, self._outputs = engine.inputs, {spec.name: spec for spec in engine.outputs}
        self._cuda = engine.cuda
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._gives_memory, self._activations = gives_memory, 0
        self._ran = False
        self._recording: list[Callable[[], None]] = []
        machine.contexts.add(self)

    def set_device_memory(self, address: int, size: int) -> None:
        assert not self._gives_memory
        assert size >= ACTIVATION_SIZE, "too little memory"
        assert address % ALIGNMENT == 0
        assert len(self._cuda.memory[address]) >= size
        self._activations = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._machine.shapes_set.append(name)
        self._shapes[name] = shape
        self._ran = False
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        empty = {s.name: np.empty(self._shapes[s.name], s.dtype) for s in self._inputs}
        return list(self._outputs[name].shape_at(bind(self._inputs, empty, "engine")))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        machine = self._machine
        assert stream == self._cuda.stream
        if machine.fails_to == "run":
            self._log.log(_Logger.ERROR, "misaligned address")
            return False
        if self._cuda.jobs is None:
            self._compute()
            self._ran = True
            return True
        assert self._ran, "recorded before the shapes were in use"
        assert not self._recording, "two recordings of a context"
        self._recording = self._cuda.jobs
        self._recording.append(partial(_replay, ref(self), self._state()))
        return True

    def _state(self) -> tuple[Any, ...]:
        return dict(self._shapes), dict(self._addresses), self._activations

    def _compute(self) -> None:
        machine, cuda = self._machine, self._cuda
        if not self._gives_memory:
            cuda.memory[self._activations][:ACTIVATION_SIZE] = 7
        feed = {
            s.name: cuda.read(self._addresses[s.name], self._shapes[s.name], s.dtype) for s in self._inputs
        }
        for name in self._outputs:
            result = (0.5 * feed["sample"] if name == CACHED else machine.compute(feed)).astype(np.float32)
            target = cuda.memory[self._addresses[name]]
            target[: result.nbytes] = np.frombuffer(result.tobytes(), np.uint8)


def _replay(context: ref[_Context], recorded: tuple[Any, ...]) -> None:
    found = context()
    assert found is not None, "replayed without its context"
    assert found._state() == recorded, "replayed after its context changed"
    found._compute()


def put_in_place(monkeypatch: pytest.MonkeyPatch, bundle: Path, folder: str = "unet") -> Machine:
    """Install the stand-in for a GPU and both libraries, which run the engine of this graph."""
    machine = Machine(read_manifest(bundle), folder)
    for flavor in FLAVORS.values():
        monkeypatch.setitem(sys.modules, flavor.module, machine.library(flavor.module))
    for module in ("engines.tensorrt.backend", "engines.tensorrt.flavors"):
        monkeypatch.setattr(f"controlnext.{module}.find_gpu", lambda _index=0: GPU)
    monkeypatch.setattr("controlnext.engines.tensorrt.backend.Cuda", machine.make_cuda)
    return machine


def _content(graph_name: str) -> bytes:
    return b"a shallow engine" if "." in graph_name else b"an engine"


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
    specs = [tensor.spec() for tensor in manifest.graph(folder).inputs]
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
        (made / ENGINE).write_bytes(_content(folder))
        write_entry(made, Entry(key, 1.0))
    return place
