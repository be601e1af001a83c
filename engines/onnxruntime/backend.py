"""The backend of ONNX Runtime.

Creating a session is slow because ONNX Runtime optimizes the graph each time. Here that happens once: the
optimized graph is written to ``<bundle>/engines/onnxruntime-<key>/<graph>/``, and sessions are created from
it, with the same results to the last bit. docs/benchmarks.md has the time that this saves.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from controlnext import processor
from controlnext.bundle.format import ENGINES, MODEL, PARTS, UINT8_PARTS, check_graph, model_file
from controlnext.bundle.manifest import Manifest, shallow_name
from controlnext.bundle.plain import plain_files
from controlnext.engines.artifact_cache import discard, is_intact, store
from controlnext.engines.artifact_cache import processor as describe_processor
from controlnext.engines.base import Backend, Engine
from controlnext.engines.devices import device_index
from controlnext.engines.onnxruntime import int8
from controlnext.engines.onnxruntime.providers import (
    CPU,
    CUDA,
    PROVIDERS,
    choose_provider,
    provider_options,
)
from controlnext.engines.onnxruntime.sessions import DeviceEngine, OrtEngine
from controlnext.engines.threads import check_threads
from controlnext.errors import BundleError, ControlNeXtError, WorkError, first_line
from controlnext.families import get_family
from controlnext.onnx_runtime import load_onnxruntime
from controlnext.types import Precision

logger = logging.getLogger(__name__)

Providers = list[tuple[str, dict[str, Any]]]

_SILENT = 4
_PROLOGUES = (PARTS[0], UINT8_PARTS[0])


class _ProviderError(ControlNeXtError):
    """A provider that this ONNX Runtime has but that does not work on this machine."""


class OrtBackend(Backend):
    """ONNX Runtime on ``device``: ``"cpu"``, ``"cuda:N"``, or ``"auto"``: CUDA if available.

    ``provider``: one of :data:`~controlnext.engines.onnxruntime.providers.PROVIDERS`, by default ``"cuda"``
    on a GPU. The two TensorRT providers build engines for each new size at run time. ``threads``: number of
    threads for an operator on the CPU, by default one for each core that the process may use.
    """

    name, title, module, extra = "onnxruntime", "ONNX Runtime", "onnxruntime", "cpu"
    devices = ("cpu", "cuda")

    def __init__(self, device: str = "auto", *, threads: int | None = None, provider: str = "auto") -> None:
        check_threads(threads)
        self.ort = load_onnxruntime()
        self.provider = choose_provider(self.ort.get_available_providers(), device, provider)
        self.index = device_index(device) or 0
        self.threads = threads
        self._may_use_cpu = device == provider == "auto"
        # the provider changes if the GPU does not start
        self._opening = Lock()

    @classmethod
    def variants(cls, kind: str) -> Mapping[str, Mapping[str, str | bool]]:
        """Return one configuration for each GPU provider; the CPU has one."""
        if kind == "cpu":
            return super().variants(kind)
        return {
            f"{cls.title} {name}": {"provider": name}
            for name, provider in PROVIDERS.items()
            if provider.device == kind
        }

    @property
    def device(self) -> str:
        """The kind of device that graphs run on: ``"cpu"`` or ``"cuda"``."""
        return PROVIDERS[self.provider].device

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open sessions of the graph in ``<bundle>/<graph_name>``; only files that are read are checked."""
        if graph_name not in manifest.graphs:
            raise BundleError(f"{bundle} has no graph {graph_name}; it has {', '.join(manifest.graphs)}")
        with self._opening:
            sessions, provider = self._open_or_fall_back(bundle, manifest, graph_name, cache), self.provider

        def load_shallow() -> Any:
            with self._opening:
                (session,) = self._open(bundle, manifest, shallow_name(graph_name), cache)
            return session

        if PROVIDERS[provider].device == "cpu":
            form = self._int8_form(manifest.graphs[graph_name].precision)
            where = f"onnxruntime on cpu{form and f', int8 as {form}'}"
            return OrtEngine(sessions, manifest, graph_name, where, load_shallow)
        name = "" if provider == CUDA else f" with {provider}"
        device, where = ("cuda", self.index), f"onnxruntime{name} on cuda:{self.index}"
        place = self.ort.OrtValue.ortvalue_from_numpy
        return DeviceEngine(sessions, manifest, graph_name, where, place, device, load_shallow)

    def _open_or_fall_back(self, bundle: Path, manifest: Manifest, graph_name: str, cache: bool) -> list[Any]:
        """Open as :meth:`_open`; on the CPU if the GPU does not start and was not requested."""
        try:
            return self._open(bundle, manifest, graph_name, cache)
        except _ProviderError as error:
            if not self._may_use_cpu:
                raise WorkError(str(error)) from error
            logger.warning("continuing without the GPU: %s", error)
            self.provider = CPU
            return self._open(bundle, manifest, graph_name, cache)

    def _open(self, bundle: Path, manifest: Manifest, graph_name: str, cache: bool) -> list[Any]:
        precision = manifest.graph(graph_name).precision
        directory = self._cache_directory(bundle, manifest, graph_name)
        own = PROVIDERS[self.provider].builds
        providers = provider_options(
            self.provider, self.index, precision, directory if cache and own else None
        )
        if cache and not own:
            sessions = self._cached_sessions(bundle, manifest, graph_name, providers)
            if sessions:
                return sessions
        return [
            self._session(graph, self._options(self._packs(manifest, graph)), providers)
            for graph in self._sources(bundle, manifest, graph_name)
        ]

    def _sources(self, bundle: Path, manifest: Manifest, graph_name: str) -> list[Path]:
        """Return the paths of :meth:`_names` after checking all files of the graph."""
        names = self._names(bundle, manifest, graph_name)
        directory = check_graph(bundle, manifest, graph_name)
        return [directory / name for name in names]

    def _names(self, bundle: Path, manifest: Manifest, graph_name: str) -> list[str]:
        """Return the name of the graph's file, or of its parts with ONNX Runtime's own operators."""
        directory, _, whole = model_file(graph_name).partition("/")
        precision = manifest.graph(graph_name).precision
        three = int8.parts_for(precision) if self.provider == CPU else PARTS
        parts = three[:2] if whole == MODEL else three[2:]
        found = [name for name in parts if f"{directory}/{name}" in manifest.files]
        if three == UINT8_PARTS and not found:
            raise BundleError(
                f"{bundle} was exported by an earlier version, whose int8 is wrong on this processor"
                " because it has no VNNI; export the bundle again with `precision` int8, or run it on a"
                " processor with VNNI"
            )
        return found if found and PROVIDERS[self.provider].runs_parts(precision) else [whole]

    def _int8_form(self, precision: Precision) -> str:
        """Return how this processor multiplies int8 in a graph of that precision; empty for others."""
        return int8.int8_form() if precision.integer_products and self.provider == CPU else ""

    def _cache_directory(self, bundle: Path, manifest: Manifest, graph_name: str) -> Path:
        """Return the directory that caches files of this graph that are slow to make."""
        return bundle / ENGINES / f"onnxruntime-{self._key(manifest)}" / graph_name

    def _cached_sessions(
        self, bundle: Path, manifest: Manifest, graph_name: str, providers: Providers
    ) -> list[Any]:
        """Return sessions of the optimized graphs; none if these cannot be used."""
        optimized = self._cache_directory(bundle, manifest, graph_name)
        if not is_intact(optimized) and not self._optimize(
            self._sources(bundle, manifest, graph_name), optimized, providers
        ):
            return []
        sessions = []
        try:
            for name in self._names(bundle, manifest, graph_name):
                graph = optimized / name
                options = self._options(self._packs(manifest, graph))
                options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                sessions.append(self._session(graph, options, providers))
            return sessions
        except WorkError as error:
            logger.warning("the optimized graph %s is not used: %s", optimized, error)
            discard(optimized)
            return []

    def _key(self, manifest: Manifest) -> str:
        """Return a hash of all that optimized graphs depend on: graphs, ONNX Runtime, provider, processor."""
        files = manifest.files.items()
        graphs = {name: entry.sha256 for name, entry in files if name.split("/")[0] in manifest.graphs}
        provider = PROVIDERS[self.provider].names[0]
        parts = [graphs, self.ort.__version__, provider, describe_processor(), "ORT_ENABLE_ALL"]
        # an emulated processor may have the description of the real one
        parts += filter(None, [self._int8_form(manifest.precision)])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _optimize(self, sources: Sequence[Path], optimized: Path, providers: Providers) -> bool:
        """Have ONNX Runtime write its optimized graphs; return whether that was possible."""
        try:
            with store(optimized) as made:
                for source in sources:
                    self._session(source, self._writing(made / source.name), providers)
        except (OSError, WorkError) as error:
            logger.info("the optimized graph of %s is not cached: %s", optimized, error)
            return False
        return True

    def _writing(self, target: Path) -> Any:
        """Return the options of a session that writes its graph to ``target`` and never runs."""
        options = self._options(packed=False)
        options.optimized_model_filepath = str(target)
        entries = {
            "session.optimized_model_external_initializers_file_name": f"{target.name}.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return options

    def _packs(self, manifest: Manifest, graph: Path) -> bool:
        """Return whether ``graph`` runs often enough to prepack its weights, a copy of them in memory.

        Only a step does. A text encoder of SD1.5 would take 0.28 s more to load, and 0.02 s less an image.
        """
        denoiser = get_family(manifest.family).denoiser
        name = graph.parent.name.partition(".")[0]
        return self.provider != CPU or (name == denoiser and graph.name not in _PROLOGUES)

    def _options(self, packed: bool) -> Any:
        options = self.ort.SessionOptions()
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        # errors are raised as exceptions too
        options.log_severity_level = _SILENT
        # the pattern plans all activations in one block after the first run, besides the memory of that run:
        # twice the memory, and no faster
        options.enable_mem_pattern = False
        # ONNX Runtime's default also counts cores that this process may not use
        options.intra_op_num_threads = self.threads or processor.usable_cores()
        return options

    def _session(self, graph: Path, options: Any, providers: Providers) -> Any:
        try:
            with plain_files(graph) as plain:
                session = self.ort.InferenceSession(
                    str(plain), options, providers=providers, enable_fallback=0
                )
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime cannot load {graph}: {first_line(error)}") from error
        if session.get_providers()[0] != providers[0][0]:
            raise _ProviderError(
                f"ONNX Runtime has {self.provider} but cannot start it on cuda:{self.index}; check the driver"
                " and the CUDA and cuDNN libraries, or set `device` to cpu"
            )
        return session
