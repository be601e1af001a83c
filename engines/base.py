"""The base classes of engines and backends."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import ClassVar

import numpy as np

from controlnext import tensor_spec
from controlnext.bundle.manifest import Manifest
from controlnext.closeable import Closeable
from controlnext.engines.devices import device_kind
from controlnext.engines.steps import NO_FEATURES, StepKind
from controlnext.errors import BundleError, InputError
from controlnext.optional import is_installed
from controlnext.types import Feed


class Engine(Closeable):
    """A graph of a bundle, ready to run. A context manager: leaving it closes it.

    ``inputs`` and ``outputs`` are the tensor specs of the bundle's manifest, float32 or int64 at every
    precision. ``backend`` names the backend and the device. Several threads may use an engine; one runs at a
    time, and its prologue beside it. ``features``: the tensor specs of what full steps compute for shallow
    ones, none without a shallow graph; ``shallow_inputs``: the names of the ``inputs`` that these read.
    """

    prologue_inputs: frozenset[str] = frozenset()
    """The inputs that the engine's prologue reads, the part that runs once for as long as they stay."""
    step_inputs: frozenset[str]
    """The names that a run reads: inputs and, with a prologue, what that computes."""
    most_rows: int | None = None
    """The largest batch that the engine accepts; None for any."""
    least_rows: int = 1
    """The smallest batch that the engine accepts."""
    least_rank: int = 0
    """The smallest rank of LoRAs that the engine accepts; zeros of it stand for no LoRA."""

    def __init__(self, manifest: Manifest, graph_name: str, backend: str = "") -> None:
        self.graph_name, self.backend = graph_name, backend
        graph = manifest.graph(graph_name)
        self.inputs = tuple(tensor.spec() for tensor in graph.inputs)
        self.outputs = tuple(tensor.spec() for tensor in graph.outputs)
        self.features = tuple(tensor.spec() for tensor in graph.shallow.features) if graph.shallow else ()
        self.shallow_inputs = frozenset(graph.shallow.inputs if graph.shallow else ())
        self.step_inputs = frozenset(spec.name for spec in self.inputs)
        self._turn, self._prologue_turn = Lock(), Lock()
        # by whether the step is shallow: that may be another engine of the library
        self._latest: dict[bool, weakref.ref[object]] = {}

    def _stand_for(self, engine: Engine) -> None:
        """Say of itself what ``engine`` does, which this one wraps."""
        self.backend, self.most_rows, self.least_rows = engine.backend, engine.most_rows, engine.least_rows
        self.prologue_inputs, self.step_inputs = engine.prologue_inputs, engine.step_inputs
        self.least_rank = engine.least_rank

    def _check_reads(self, reads: Iterable[str], computed: Iterable[str] = ()) -> None:
        """Raise :class:`BundleError` for a graph that reads other inputs than the manifest says, or what
        another part of it has ``computed``."""
        known = {*computed, *(spec.name for spec in self.inputs)}
        if strange := sorted(set(reads) - known):
            raise BundleError(
                f"the graph of {self.graph_name} reads {strange[0]!r}, which the manifest does not list: it"
                " is another graph; export the bundle again"
            )

    @cached_property
    def without_loras(self) -> Feed:
        """The inputs that stand for no LoRA; none for a graph without room for LoRAs."""
        return tensor_spec.without_loras(self.inputs, self.least_rank)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return the outputs by name for the inputs by name.

        Raises :class:`~controlnext.errors.InputError` if ``feed`` contradicts ``inputs``, before anything
        runs, and :class:`~controlnext.errors.WorkError` if the engine itself fails.
        """
        return self.bind(feed).run({})

    def bind(self, constants: Feed) -> BoundEngine:
        """Return the engine with some inputs bound, for runs that differ in the others; by default no LoRA.

        Raises :class:`~controlnext.errors.InputError` if they contradict the specs or each other.
        """
        # of rank 0 where that is not accepted
        given = {n: a for n, a in constants.items() if a.size or n not in self.without_loras}
        return BoundEngine(self, {**self.without_loras, **given})

    def run_bound(
        self, bound: object, feed: Feed, replaced: Collection[str], kind: StepKind = StepKind.PLAIN
    ) -> dict[str, np.ndarray]:
        """Run for ``bound``, which has checked ``feed``: the inputs, what the prologue computed, and for a
        shallow step the features.

        ``feed`` differs in ``replaced`` from that of the last run of ``bound``, shallow or not as this one.
        """
        shallow = kind is StepKind.SHALLOW
        with self._turn:
            # if the run fails, the state of the engine is unknown
            latest = self._latest.pop(shallow, None)
            first = latest is None or latest() is not bound
            if first:
                replaced = feed.keys()
            if kind is StepKind.PLAIN:
                outputs = self._run(feed, replaced)
            else:
                outputs = self._run_cached(feed, replaced, kind)
            if first:
                # a graph that is not the manifest's shows it at once; at every step it would cost a quarter
                specs = self.outputs + (self.features if kind is StepKind.FULL else ())
                tensor_spec.check_outputs(specs, outputs, self.graph_name, self.inputs, feed)
            self._latest[shallow] = weakref.ref(bound)
        return outputs

    def open_shallow(self) -> None:
        """Get ready for full and shallow steps.

        Raises :class:`~controlnext.errors.InputError` if the bundle has no shallow graph, or the backend no
        engine of it.
        """
        if not self.features:
            raise InputError(
                f"the bundle has no shallow graph of {self.graph_name}, which `cache_interval` above 1 needs;"
                " export the bundle again with this version, or set `cache_interval` to 1",
                argument="cache_interval",
            )
        with self._turn:
            self._open_shallow()

    def run_prologue(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return what the prologue computes of its inputs in ``feed``, the batch on the first axis."""
        with self._prologue_turn:
            return self._run_prologue(feed)

    def _run_prologue(self, feed: Feed) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Return the prologue's outputs; nothing for an engine without one."""
        return {}

    @abstractmethod
    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        """Return the outputs for all inputs; those not in ``replaced`` are the arrays of the last run."""

    def _open_shallow(self) -> None:
        """Open what :meth:`_run_cached` needs; a second call does nothing."""
        raise InputError(
            f"{self.backend or 'this backend'} has no step cache; set `cache_interval` to 1, or `backend` to"
            " onnxruntime",
            argument="cache_interval",
        )

    def _run_cached(self, feed: Feed, replaced: Collection[str], kind: StepKind) -> dict[str, np.ndarray]:
        """Return the outputs as :meth:`_run` does, of a full step the features too.

        A shallow step's ``feed`` has the features, and its ``replaced`` counts from the last shallow run.
        """
        raise NotImplementedError

    def _closed(self) -> InputError:
        """Return the error of a run of an engine that was closed."""
        return InputError(f"the engine of {self.graph_name} is closed; open it again")

    def close(self) -> None:
        """Release resources once no other thread runs the engine; it cannot run again."""
        with self._turn, self._prologue_turn:
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """Release the engine's resources; a second call does nothing."""


class BoundEngine:
    """An engine with bound inputs, which stay the same from run to run (on a GPU, in its memory).

    Bound arrays must not be changed in place. ``rows``: the batch of a run; None if the inputs do not tell.
    """

    def __init__(self, engine: Engine, constants: Feed) -> None:
        names = {spec.name for spec in engine.inputs}
        if unknown := sorted(set(constants) - names):
            raise InputError(
                f"{engine.graph_name}: unknown inputs {unknown}; accepted: {sorted(names)}; remove the others"
            )
        self.engine = engine
        self._bound = dict(constants)
        self._sizes = tensor_spec.bind(
            [spec for spec in engine.inputs if spec.name in constants], constants, engine.graph_name
        )
        self._rest = [spec for spec in engine.inputs if spec.name not in constants]
        self.rows = self._sizes.get("batch")
        self._handed_over: dict[str, np.ndarray] | None = None
        self._taken: Feed | None = None

    def last_rows(self, count: int) -> BoundEngine:
        """Return the engine bound to the last ``count`` rows of the batch alone.

        What the prologue has computed is taken from here; an input of one row for the batch stays as it is.
        """
        constants = {name: self._last(array, count) for name, array in self._bound.items()}
        bound = BoundEngine(self.engine, constants)
        if self._handed_over is not None:
            bound._handed_over = {name: self._last(array, count) for name, array in self._handed_over.items()}
        return bound

    def _last(self, array: np.ndarray, count: int) -> np.ndarray:
        return array[-count:] if len(array) == self.rows else array

    def prepare(self) -> None:
        """Run the engine's prologue now instead of in the first run, if all of its inputs are bound."""
        if self._handed_over is None and self.engine.prologue_inputs <= self._bound.keys():
            self._handed_over = self.engine.run_prologue(self._bound)

    def run(
        self, feed: Feed, kind: StepKind = StepKind.PLAIN, features: Feed = NO_FEATURES
    ) -> dict[str, np.ndarray]:
        """Return the outputs by name for the inputs that are not bound; raise as :meth:`Engine.run`.

        A full step returns the features too. A shallow one takes them, and needs only the inputs that
        :class:`Engine` names; as long as it gets the same mapping, the features are not copied again.
        """
        constants, changing = self.arguments(feed, kind)
        new = frozenset[str]() if features is self._taken else features.keys()
        self._taken = features
        given = {**constants, **changing, **features}
        return self.engine.run_bound(self, given, changing.keys() | new, kind)

    def arguments(self, feed: Feed, kind: StepKind = StepKind.PLAIN) -> tuple[Feed, Feed]:
        """Return what :meth:`Engine.run_bound` takes: what stays from run to run, and what does not."""
        rest, given = self._rest, feed
        if kind is StepKind.SHALLOW:
            rest = [spec for spec in rest if spec.name in self.engine.shallow_inputs]
            given = {spec.name: feed[spec.name] for spec in rest if spec.name in feed}
        tensor_spec.bind(rest, given, self.engine.graph_name, self._sizes)
        self.prepare()
        if self._handed_over is not None:
            return {**self._bound, **self._handed_over}, feed
        return self._bound, {**feed, **self.engine.run_prologue({**self._bound, **feed})}


class Backend(ABC):
    """A library that runs graphs, set up for one device.

    The class variables describe it to the rest of the package. ``name``: the value of ``backend``;
    ``title``: the name in messages; ``module``: the Python module of the library; ``extra``: the extra that
    installs it. ``devices``: the kinds of device that it runs on. ``needs_build``: it runs engines that were
    built into the bundle before, not the graph itself. ``rounds_to``: the type that it rounds operands of
    products to where that is less exact than the bundle says; ``auto`` never takes such a backend.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    module: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    needs_build: ClassVar[bool] = False
    rounds_to: ClassVar[str] = ""

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
