"""The backends that run built engines of TensorRT and TensorRT-RTX on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from controlnext.bundle.format import check_graph, model_file
from controlnext.bundle.manifest import Manifest, shallow_name
from controlnext.engines.base import Backend, Engine
from controlnext.engines.devices import device_index
from controlnext.engines.steps import StepKind
from controlnext.engines.tensorrt.contexts import Contexts, Shapes
from controlnext.engines.tensorrt.cuda import Cuda
from controlnext.engines.tensorrt.flavors import FLAVORS, Flavor
from controlnext.engines.tensorrt.gpu import find_gpu
from controlnext.engines.tensorrt.load import Loaded, LoadOptions
from controlnext.engines.tensorrt.profile import SIZES
from controlnext.engines.tensorrt.store import Profile, find_engine, has_engine
from controlnext.errors import EngineError, InputError
from controlnext.tensor_spec import LORA_RANK, TensorSpec, split_dim
from controlnext.types import Feed


class TrtBackend(Backend):
    """Built engines of one of the two libraries, ``flavor``, on a GPU.

    ``device``: ``"cuda:N"``, or ``"auto"`` for the first GPU. ``graphs``: whether runs of unchanged sizes are
    repeated as CUDA graphs. ``threads`` has no effect: everything runs on the GPU.
    """

    flavor: ClassVar[Flavor]
    devices = ("cuda",)
    needs_build = True

    def __init_subclass__(cls) -> None:
        flavor = cls.flavor
        cls.name, cls.title, cls.module, cls.extra = flavor.name, flavor.title, flavor.module, flavor.extra

    def __init__(
        self,
        device: str = "auto",
        *,
        threads: int | None = None,  # noqa: ARG002
        graphs: bool = True,
    ) -> None:
        self._graphs = graphs
        if not super().supports(device):
            raise InputError(
                f"{self.title} does not run on device {device}; set `device` to cuda:0, or remove it",
                argument="device",
            )
        self._index = device_index(device) or 0
        self.flavor.library()

    @classmethod
    def supports(cls, device: str) -> bool:
        """Return whether ``device`` is a GPU of this machine."""
        return super().supports(device) and find_gpu(device_index(device) or 0) is not None

    @classmethod
    def has_engine(cls, bundle: Path, graph_name: str) -> bool:
        """Return whether the bundle has a built engine of ``graph_name``, suitable or not."""
        return has_engine(bundle, graph_name, cls.name)

    @classmethod
    def variants(cls, kind: str) -> Mapping[str, Mapping[str, str | bool]]:  # noqa: ARG003
        """Return the configurations with and without CUDA graphs."""
        return {
            f"{cls.title}{suffix}": {"cuda_graphs": graphs}
            for suffix, graphs in (("", True), (" without CUDA graphs", False))
        }

    @classmethod
    def profiles(cls, bundle: Path, manifest: Manifest) -> dict[str, Profile]:
        """Return the shapes that the built engines accept, by graph; none without a GPU.

        Raises the errors of :func:`~controlnext.engines.tensorrt.store.find_engine`.
        """
        gpu, built = find_gpu(), [name for name in manifest.parts if cls.has_engine(bundle, name)]
        if gpu is None or not built:
            return {}
        requirements = cls.flavor.requirements(gpu)
        stored = {name: find_engine(bundle, manifest, name, requirements) for name in built}
        return {name: engine.entry.key.profile for name, engine in stored.items()}

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> TrtEngine:
        """Open the built engine of the graph ``graph_name``.

        ``cache``: whether the kernels compiled for this GPU are cached beside the engine. Raises the errors
        of :func:`~controlnext.engines.tensorrt.store.find_engine`, :class:`~controlnext.errors.InputError`
        without a GPU, and :class:`~controlnext.errors.WorkError` if the library cannot load the engine.
        """
        flavor, where = self.flavor, f"cuda:{self._index}"
        gpu = find_gpu(self._index)
        if gpu is None:
            raise InputError(
                f"{flavor.title} needs an NVIDIA GPU and finds no {where}; check the driver, or set `backend`"
                " to onnxruntime"
            )
        stored = find_engine(bundle, manifest, graph_name, flavor.requirements(gpu))
        if stored.entry.key.options.get("strip_weights"):
            check_graph(bundle, manifest, graph_name)
        kernels = stored.path.parent / "kernels" if cache else None
        options = LoadOptions(flavor, stored, bundle / model_file(graph_name), kernels, self._graphs)
        limits = _Limits(stored.entry.key.profile, bundle, flavor.name)
        backend = f"{flavor.name} on {where} ({gpu.name})"
        cuda = Cuda(self._index, flavor.extra)

        def open_shallow() -> TrtEngine:
            return self.open(bundle, manifest, shallow_name(graph_name), cache=cache)

        try:
            return TrtEngine(manifest, graph_name, backend, Loaded(options), cuda, limits, open_shallow)
        except BaseException:
            cuda.close()
            raise


class TensorRtBackend(TrtBackend):
    """The backend of TensorRT."""

    flavor = FLAVORS["tensorrt"]


class TensorRtRtxBackend(TrtBackend):
    """The backend of TensorRT-RTX."""

    flavor = FLAVORS["tensorrt-rtx"]


class TrtEngine(Engine):
    """An engine with its buffers on the GPU, which are freed when the engine is closed.

    ``open_shallow`` opens the engine of its shallow part, which has buffers of its own.
    """

    def __init__(
        self,
        manifest: Manifest,
        graph_name: str,
        backend: str,
        loaded: Loaded,
        cuda: Cuda,
        limits: _Limits,
        open_shallow: Callable[[], TrtEngine],
    ) -> None:
        super().__init__(manifest, graph_name, backend)
        self._loaded: Loaded | None = loaded
        self._cuda, self._limits = cuda, limits
        self.most_rows, self.least_rows = limits.most_rows(self.inputs), limits.least_rows(self.inputs)
        self.least_rank = limits.least_rank(self.inputs)
        self._contexts = Contexts(loaded, cuda, self.inputs, (*self.outputs, *self.features))
        self._load_shallow = open_shallow
        self._shallow: TrtEngine | None = None

    def _open_shallow(self) -> None:
        if self._shallow is None:
            self._shallow = self._load_shallow()

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        return self._computed(feed, replaced, self.outputs)

    def _run_cached(self, feed: Feed, replaced: Collection[str], kind: StepKind) -> dict[str, np.ndarray]:
        self._open_shallow()
        assert self._shallow is not None
        if kind is StepKind.FULL:
            return self._computed(feed, replaced, (*self.outputs, *self.features))
        reads = self._shallow.step_inputs
        return self._shallow._run({name: feed[name] for name in reads}, reads.intersection(replaced))

    def _computed(
        self, feed: Feed, replaced: Collection[str], wanted: Sequence[TensorSpec]
    ) -> dict[str, np.ndarray]:
        """Return the outputs ``wanted``; the engine computes all."""
        if self._loaded is None:
            raise self._closed()
        self._cuda.use()
        shapes = {name: array.shape for name, array in feed.items()}
        if shapes not in self._contexts:
            self._limits.check(self.inputs, shapes, self.graph_name)
        context, addresses = self._contexts.at(shapes), self._contexts.buffers.addresses
        # these arrays must live until the copies are done
        given = {name: np.ascontiguousarray(feed[name]) for name in replaced}
        for name, array in given.items():
            self._cuda.upload(array, addresses[name])
        self._contexts.run(context)
        outputs = {spec.name: np.empty(context.results[spec.name], spec.dtype) for spec in wanted}
        for name, array in outputs.items():
            self._cuda.download(addresses[name], array)
        self._cuda.synchronize()
        return outputs

    def _close(self) -> None:
        if self._loaded is None:
            return
        if self._shallow is not None:
            self._shallow._close()
        self._cuda.use()
        self._loaded.save_kernels()
        self._contexts.close()
        self._loaded.close()
        self._loaded = None
        self._cuda.close()


class _Limits:
    """The shapes that ``backend`` built an engine of a bundle for."""

    def __init__(self, profile: Profile, bundle: Path, backend: str) -> None:
        self._profile, self._bundle, self._backend = profile, bundle, backend

    def most_rows(self, specs: Collection[TensorSpec]) -> int | None:
        """Return the largest batch; None if no input has one."""
        return min(self._rows(specs, 2), default=None)

    def least_rows(self, specs: Collection[TensorSpec]) -> int:
        """Return the smallest batch."""
        return max(self._rows(specs, 0), default=1)

    def least_rank(self, specs: Collection[TensorSpec]) -> int:
        """Return the smallest rank of LoRAs; 0 without room for them."""
        taking = [spec for spec in specs if LORA_RANK in spec.shape]
        return max((self._profile[s.name][0][s.shape.index(LORA_RANK)] for s in taking), default=0)

    def _rows(self, specs: Collection[TensorSpec], kind: int) -> list[int]:
        return [self._profile[spec.name][kind][0] for spec in specs if spec.shape[0] == "batch"]

    def check(self, specs: Collection[TensorSpec], shapes: Shapes, graph_name: str) -> None:
        """Raise :class:`InputError` for shapes beyond the limits.

        It is the subclass :class:`EngineError` if another engine can accept the shapes.
        """
        for spec in specs:
            smallest, _, largest = self._profile[spec.name]
            sizes = zip(spec.shape, shapes[spec.name], smallest, largest, strict=True)
            wrong = [split_dim(str(dim))[1] for dim, size, low, high in sizes if not low <= size <= high]
            if wrong:
                raise self._refusal(
                    f"{graph_name}: {spec.name} has shape {shapes[spec.name]}, but the engine was built for"
                    f" {tuple(smallest)} to {tuple(largest)}",
                    wrong,
                )

    def _refusal(self, problem: str, symbols: Collection[str]) -> InputError:
        names = [symbol.removeprefix("control_").partition("_")[0] for symbol in symbols]
        ranges = {name: "MIN:OPT:MAX" for name in names if name in SIZES}
        if not ranges:
            return InputError(f"{problem}; set `backend` to onnxruntime", argument="backend")
        problem += ", while `backend` onnxruntime accepts any size"
        return EngineError(problem, self._bundle, {"backend": self._backend, **ranges}, argument="backend")
