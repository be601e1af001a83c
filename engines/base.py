"""What every engine and every backend is."""

from __future__ import annotations

import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Lock
from typing import ClassVar

import numpy as np

from controlnext import tensor_spec
from controlnext.bundle.manifest import Manifest
from controlnext.closeable import Closeable
from controlnext.errors import InputError
from controlnext.optional import is_installed
from controlnext.types import Feed


def device_index(device: str) -> int | None:
    """The number of the GPU in ``"cuda:N"``; None for ``"auto"`` and ``"cpu"``.

    Raises :class:`~controlnext.errors.InputError` for anything else.
    """
    cuda = re.fullmatch(r"cuda:(\d+)", device)
    if not cuda and device not in ("auto", "cpu"):
        raise InputError(
            f"unknown device {device!r}; accepted: auto, cpu, cuda:0, cuda:1, ...", argument="device"
        )
    return int(cuda[1]) if cuda else None


def device_kind(device: str) -> str:
    """``"auto"``, ``"cpu"`` or ``"cuda"``: the device without its number; raises as :func:`device_index`."""
    return device if device_index(device) is None else "cuda"


class Engine(Closeable):
    """One graph of a bundle, ready to run. A context manager: leaving it closes it.

    ``inputs`` and ``outputs`` are the tensor specs of the bundle's manifest, at the edges float32 or int64
    whatever the precision inside. ``backend`` says what runs it and where. Several threads may use an engine;
    one runs at a time.
    """

    def __init__(self, manifest: Manifest, graph_name: str, backend: str = "") -> None:
        self.graph_name, self.backend = graph_name, backend
        self.inputs = tuple(tensor.spec() for tensor in manifest.graphs[graph_name].inputs)
        self.outputs = tuple(tensor.spec() for tensor in manifest.graphs[graph_name].outputs)
        self._turn = Lock()
        self._latest: weakref.ref[BoundEngine] | None = None

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name.

        Raises :class:`~controlnext.errors.InputError` where ``feed`` contradicts ``inputs``, before anything
        runs, and :class:`~controlnext.errors.WorkError` where the engine itself fails.
        """
        return self.bind(feed).run({})

    def bind(self, constants: Feed) -> BoundEngine:
        """The engine with some inputs in place, for runs that differ in the others."""
        return BoundEngine(self, constants)

    def run_bound(self, bound: BoundEngine, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        """As :meth:`BoundEngine.run`, which has checked ``feed``; it differs in ``replaced`` from what
        ``bound`` ran with before."""
        with self._turn:
            if self._latest is None or self._latest() is not bound:
                replaced = feed.keys()
            # whatever fails, what the engine holds is not known any more
            self._latest = None
            outputs = self._run(feed, replaced)
            self._latest = weakref.ref(bound)
        return outputs

    @abstractmethod
    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        """Outputs for all inputs, of which those not in ``replaced`` are the arrays of the run before."""

    def close(self) -> None:
        """Release the engine's resources, after the run of another thread if there is one; it cannot run any
        more."""
        with self._turn:
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """Release what the engine holds; called again it does nothing."""


class BoundEngine:
    """An engine with inputs that stay from run to run: where it has a memory of its own, they stay there.

    The arrays that are kept must not be changed in place.
    """

    def __init__(self, engine: Engine, constants: Feed) -> None:
        self._engine = engine
        self._kept: dict[str, np.ndarray] = {}
        self._replaced: set[str] = set()
        self.set_inputs(constants)

    def set_inputs(self, feed: Feed) -> None:
        """Set inputs that stay from run to run, in place of those of the same names.

        Raises :class:`~controlnext.errors.InputError` where they contradict the specs or each other.
        """
        engine, kept = self._engine, {**self._kept, **feed}
        unknown = sorted(set(feed) - {spec.name for spec in engine.inputs})
        if unknown:
            names = sorted(spec.name for spec in engine.inputs)
            raise InputError(f"{engine.graph_name}: inputs unknown {unknown}; it takes {names}")
        self._sizes = tensor_spec.bind(
            [spec for spec in engine.inputs if spec.name in kept], kept, engine.graph_name
        )
        self._rest = [spec for spec in engine.inputs if spec.name not in kept]
        self._kept = kept
        self._replaced |= set(feed)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Outputs by name for the inputs that are not kept; raises as :meth:`Engine.run`."""
        tensor_spec.bind(self._rest, feed, self._engine.graph_name, self._sizes)
        outputs = self._engine.run_bound(self, {**self._kept, **feed}, self._replaced | feed.keys())
        self._replaced.clear()
        return outputs


class Backend(ABC):
    """A library that runs graphs, set up for one device.

    What the class says of itself is all that others know of it: ``name`` is what users give, ``title`` what
    they read, ``module`` the Python module of its library and ``extra`` what installs that. ``devices``: the
    kinds of device that it runs on. ``needs_build``: it runs engines that were built before and lie in the
    bundle, not the graph itself.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    module: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    needs_build: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        """Set the library up for ``device``; ``threads``: how many compute on the processor.

        Raises :class:`~controlnext.errors.InputError` for a device that it does not run on, and
        :class:`~controlnext.errors.MissingDependencyError` without the library.
        """

    @classmethod
    def available(cls) -> bool:
        """Whether the library is installed; it is not imported."""
        return is_installed(cls.module)

    @classmethod
    def supports(cls, device: str) -> bool:
        """Whether it runs on ``device``, of which ``"auto"`` is any; raises as :func:`device_index`."""
        return device_kind(device) in ("auto", *cls.devices)

    @classmethod
    def has_engine(cls, bundle: Path, graph_name: str) -> bool:  # noqa: ARG003
        """Whether the bundle has what ``graph_name`` is run from, be it right or not: none is read."""
        return not cls.needs_build

    @classmethod
    def variants(cls, kind: str) -> Mapping[str, Mapping[str, str | bool]]:  # noqa: ARG003
        """The ways in which it runs a graph on a device of this kind that are worth a comparison, by title:
        what each takes besides ``backend`` and ``device``."""
        return {cls.title: {}}

    @abstractmethod
    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """The engine of the graph ``graph_name``; all as in :func:`controlnext.engines.open_engine`."""
