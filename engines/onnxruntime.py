"""ONNX Runtime as an engine.

Making a session is slow because the graph is optimized each time. Here that happens once: the optimized graph
is written to ``<bundle>/engines/onnxruntime-<key>/<graph>/`` and sessions are made from it, with the same
results to the last bit. Measured on a UNet of 366 M parameters, two cores, after the 1.4 s for the checksums:
1.5 s and 1.2 GB instead of 4 to 5 s and 1.7 GB, and once 6 s and 1.7 GB to write it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from controlnext.engines.base import Backend, Engine, Feed, device_index
from controlnext.engines.cache import discard, is_intact, processor, store
from controlnext.engines.providers import (
    CPU,
    CUDA,
    OWN_ENGINES,
    PROVIDERS,
    choose_provider,
    provider_options,
)
from controlnext.errors import BundleError, ControlNeXtError, InputError, MissingDependencyError, WorkError
from controlnext.manifest import Manifest, check_file

logger = logging.getLogger(__name__)

Providers = list[tuple[str, dict[str, Any]]]

_GRAPH = "model.onnx"
_SILENT = 4


class _ProviderError(ControlNeXtError):
    """A provider is part of this ONNX Runtime but does not work on this machine."""


class OrtBackend(Backend):
    """ONNX Runtime on ``device``: ``"cpu"``, ``"cuda:N"``, or ``"auto"``, which is CUDA where it is there.

    ``provider``: one of :data:`~controlnext.engines.providers.PROVIDERS`, by default ``"cuda"`` on a GPU. The
    two TensorRTs among them build their engines for the sizes that they see, when they see them.
    ``threads``: how many compute an operator on the processor; by default there is one for each core.
    """

    def __init__(self, device: str = "auto", provider: str = "auto", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; give a whole number from 1 on, or leave it out")
        self.ort = _import_onnxruntime()
        self.provider = choose_provider(self.ort.get_available_providers(), device, provider)
        self.index = device_index(device) or 0
        self.threads = threads
        self._may_use_cpu = device == provider == "auto"

    def open(self, bundle: Path, manifest: Manifest, folder: str, *, cache: bool = True) -> Engine:
        """A session of ``<bundle>/<folder>/model.onnx``; only the files that are read are checked."""
        if folder not in manifest.graphs:
            raise BundleError(f"{bundle} has no graph {folder}; it has {', '.join(manifest.graphs)}")
        try:
            session = self._open(bundle, manifest, folder, cache)
        except _ProviderError as error:
            if not self._may_use_cpu:
                raise WorkError(str(error)) from error
            logger.warning("going on without the GPU: %s", error)
            self.provider = CPU
            session = self._open(bundle, manifest, folder, cache)
        if self.provider == CPU:
            return OrtEngine(session, manifest, folder, "onnxruntime on cpu")
        name = "" if self.provider == CUDA else f" with {self.provider}"
        device, where = ("cuda", self.index), f"onnxruntime{name} on cuda:{self.index}"
        return DeviceEngine(session, manifest, folder, where, self.ort.OrtValue.ortvalue_from_numpy, device)

    def _open(self, bundle: Path, manifest: Manifest, folder: str, cache: bool) -> Any:
        precision, kept = manifest.graphs[folder].precision, self._kept(bundle, manifest, folder)
        own = self.provider in OWN_ENGINES
        providers = provider_options(self.provider, self.index, precision, kept if cache and own else None)
        session = self._cached_session(bundle, manifest, folder, providers) if cache and not own else None
        if session is None:
            session = self._session(self._source(bundle, manifest, folder), self._options(), providers)
        return session

    def _source(self, bundle: Path, manifest: Manifest, folder: str) -> Path:
        for name in manifest.files:
            if name.startswith(f"{folder}/"):
                check_file(bundle, manifest, name)
        return bundle / folder / _GRAPH

    def _kept(self, bundle: Path, manifest: Manifest, folder: str) -> Path:
        """Where what is slow to make for this graph is kept."""
        return bundle / "engines" / f"onnxruntime-{self._key(manifest)}" / folder

    def _cached_session(
        self, bundle: Path, manifest: Manifest, folder: str, providers: Providers
    ) -> Any | None:
        optimized = self._kept(bundle, manifest, folder)
        if not is_intact(optimized):
            source = self._source(bundle, manifest, folder)
            if not self._optimize(source, optimized, providers):
                return None
        options = self._options()
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return self._session(optimized / _GRAPH, options, providers)
        except WorkError as error:
            logger.warning("the optimized graph %s is not used: %s", optimized, error)
            discard(optimized)
            return None

    def _key(self, manifest: Manifest) -> str:
        """What the optimized graphs depend on: the bundle's graphs, ONNX Runtime, provider, processor."""
        files = manifest.files.items()
        graphs = {name: entry.sha256 for name, entry in files if name.split("/")[0] in manifest.graphs}
        parts = [graphs, self.ort.__version__, PROVIDERS[self.provider][0], processor(), "ORT_ENABLE_ALL"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _optimize(self, source: Path, optimized: Path, providers: Providers) -> bool:
        """Have ONNX Runtime write the graph that it makes of the bundle's; whether that was possible."""
        options = self._options()
        entries = {
            "session.optimized_model_external_initializers_file_name": f"{_GRAPH}.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
            # this session never runs: packed copies of the weights would only cost memory
            "session.disable_prepacking": "1",
        }
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        try:
            with store(optimized) as made:
                options.optimized_model_filepath = str(made / _GRAPH)
                self._session(source, options, providers)
        except (OSError, WorkError) as error:
            logger.info("the optimized graph of %s is not kept for the next time: %s", source, error)
            return False
        return True

    def _options(self) -> Any:
        options = self.ort.SessionOptions()
        # what goes wrong comes as an exception too
        options.log_severity_level = _SILENT
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        return options

    def _session(self, graph: Path, options: Any, providers: Providers) -> Any:
        try:
            session = self.ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime cannot load {graph}: {_first_line(error)}") from error
        if session.get_providers()[0] != providers[0][0]:
            raise _ProviderError(
                f"ONNX Runtime has {self.provider} but cannot start it on cuda:{self.index}; check the driver"
                " and the CUDA and cuDNN libraries or give device cpu"
            )
        return session


class OrtEngine(Engine):
    """One ONNX Runtime session."""

    def __init__(self, session: Any, manifest: Manifest, folder: str, backend: str) -> None:
        super().__init__(manifest, folder, backend)
        self._names = [spec.name for spec in self.outputs]
        self._session: Any | None = session

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        if self._session is None:
            raise InputError(f"the engine of {self.folder} is closed; open it again")
        try:
            outputs = self._outputs(self._session, feed, replaced)
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime failed in {self.folder}: {_first_line(error)}") from error
        return dict(zip(self._names, outputs, strict=True))

    def _outputs(self, session: Any, feed: Feed, _replaced: Collection[str]) -> list[np.ndarray]:
        return session.run(self._names, dict(feed))

    def close(self) -> None:
        self._session = None


class DeviceEngine(OrtEngine):
    """A session on a device with a memory of its own, in which the inputs stay until they are replaced.

    ``place`` copies an array to that memory; it takes the array, the device's type and number.
    """

    def __init__(
        self,
        session: Any,
        manifest: Manifest,
        folder: str,
        backend: str,
        place: Callable[[np.ndarray, str, int], Any],
        device: tuple[str, int],
    ) -> None:
        super().__init__(session, manifest, folder, backend)
        self._place, self._device = place, device
        self._binding: Any | None = session.io_binding()

    def _outputs(self, session: Any, feed: Feed, replaced: Collection[str]) -> list[np.ndarray]:
        binding: Any = self._binding
        for name in replaced:
            binding.bind_ortvalue_input(name, self._place(np.ascontiguousarray(feed[name]), *self._device))
        for name in self._names:
            # anew each time: what ONNX Runtime allocated for the run before has that run's shape
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        outputs = binding.copy_outputs_to_cpu()
        binding.clear_binding_outputs()
        return outputs

    def close(self) -> None:
        self._binding = None
        super().close()


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            'ONNX Runtime is not installed; run pip install "controlnext[cpu]", or "controlnext[gpu]" for'
            f" NVIDIA ({error})"
        ) from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
