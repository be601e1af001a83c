"""The base classes of engines and backends."""

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
    """Return the number of the GPU in ``"cuda:N"``; None for ``"auto"`` and ``"cpu"``.

    Raises :class:`~controlnext.errors.InputError` for anything else.
    """
    cuda = re.fullmatch(r"cuda:(\d+)", device)
    if not cuda and device not in ("auto", "cpu"):
        raise InputError(
            f"unknown device {device!r}; accepted: auto, cpu, cuda:0, cuda:1, ...", argument="device"
        )
    return int(cuda[1]) if cuda else None


def device_kind(device: str) -> str:
    """Return the device without its number: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises as :func:`device_index` does.
    """
    return device if device_index(device) is None else "cuda"


class Engine(Closeable):
    """A graph of a bundle, ready to run. A context manager: leaving it closes it.

    ``inputs`` and ``outputs`` are the tensor specs of the bundle's manifest, float32 or int64 at every
    precision. ``backend`` names the backend and the device. Several threads may use an engine; one runs at a
    time.
    """

    def __init__(self, manifest: Manifest, graph_name: str, backend: str = "") -> None:
        self.graph_name, self.backend = graph_name, backend
        self.inputs = tuple(tensor.spec() for tensor in manifest.graphs[graph_name].inputs)
        self.outputs = tuple(tensor.spec() for tensor in manifest.graphs[graph_name].outputs)
        self._turn = Lock()
        self._latest: weakref.ref[BoundEngine] | None = None

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return the outputs by name for the inputs by name.

        Raises :class:`~controlnext.errors.InputError` if ``feed`` contradicts ``inputs``, before anything
        runs, and :class:`~controlnext.errors.WorkError` if the engine itself fails.
        """
        return self.bind(feed).run({})

    def bind(self, constants: Feed) -> BoundEngine:
        """Return the engine with some inputs bound, for runs that differ in the others."""
        return BoundEngine(self, constants)

    def run_bound(self, bound: BoundEngine, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        """Run for :meth:`BoundEngine.run`, which has checked ``feed``.

        ``feed`` differs in ``replaced`` from that of the last run of ``bound``.
        """
        with self._turn:
            if self._latest is None or self._latest() is not bound:
                replaced = feed.keys()
            # if the run fails, the state of the engine is unknown
            self._latest = None
            outputs = self._run(feed, replaced)
            self._latest = weakref.ref(bound)
        return outputs

    @abstractmethod
    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        """Return the outputs for all inputs; those not in ``replaced`` are the arrays of the last run."""

    def close(self) -> None:
        """Release resources once no other thread runs the engine; it cannot run again."""
        with self._turn:
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """Release the engine's resources; a second call does nothing."""


class BoundEngine:
    """An engine with bound inputs, which stay the same from run to run (on a GPU, in its memory).

    Bound arrays must not be changed in place.
    """

    def __init__(self, engine: Engine, constants: Feed) -> None:
        self._engine = engine
        self._bound: dict[str, np.ndarray] = {}
        self._replaced: set[str] = set()
        self.set_inputs(constants)

    def set_inputs(self, feed: Feed) -> None:
        """Bind inputs for the following runs; they replace bound inputs of the same names.

        Raises :class:`~controlnext.errors.InputError` if they contradict the specs or each other.
        """
        engine, bound = self._engine, {**self._bound, **feed}
        unknown = sorted(set(feed) - {spec.name for spec in engine.inputs})
        if unknown:
            names = sorted(spec.name for spec in engine.inputs)
            raise InputError(
                f"{engine.graph_name}: unknown inputs {unknown}; accepted: {names}; remove the others"
            )
        self._sizes = tensor_spec.bind(
            [spec for spec in engine.inputs if spec.name in bound], bound, engine.graph_name
        )
        self._rest = [spec for spec in engine.inputs if spec.name not in bound]
        self._bound = bound
        self._replaced |= set(feed)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return the outputs by name for the inputs that are not bound; raise as :meth:`Engine.run`."""
        tensor_spec.bind(self._rest, feed, self._engine.graph_name, self._sizes)
        outputs = self._engine.run_bound(self, {**self._bound, **feed}, self._replaced | feed.keys())
        self._replaced.clear()
        return outputs


class Backend(ABC):
    """A library that runs graphs, set up for one device.

    The class variables describe it to the rest of the package. ``name``: the value of ``backend``;
    ``title``: the name in messages; ``module``: the Python module of the library; ``extra``: the extra that
    installs it. ``devices``: the kinds of device that it runs on. ``needs_build``: it runs engines that were
    built into the bundle before, not the graph itself.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    module: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    needs_build: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        """Set the library up for ``device``; ``threads``: number of threads on the CPU.

        Raises :class:`~controlnext.errors.InputError` for a device that it does not run on, and
        :class:`~controlnext.errors.MissingDependencyError` without the library.
        """

    @classmethod
    def available(cls) -> bool:
        """Return whether the library is installed, without importing it."""
        return is_installed(cls.module)

    @classmethod
    def supports(cls, device: str) -> bool:
        """Return whether it runs on ``device`` (always for ``"auto"``); raise as :func:`device_index`."""
        return device_kind(device) in ("auto", *cls.devices)

    @classmethod
    def has_engine(cls, bundle: Path, graph_name: str) -> bool:  # noqa: ARG003
        """Return whether the bundle has files to run ``graph_name`` from; they are not read or checked."""
        return not cls.needs_build

    @classmethod
    def variants(cls, kind: str) -> Mapping[str, Mapping[str, str | bool]]:  # noqa: ARG003
        """Return the configurations to compare on a device of this kind.

        The keys are titles, the values arguments besides ``backend`` and ``device``.
        """
        return {cls.title: {}}

    @abstractmethod
    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open the engine of the graph ``graph_name`` as :func:`controlnext.engines.open_engine` does."""
