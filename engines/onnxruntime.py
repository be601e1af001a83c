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
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from controlnext.engines.base import Backend, Engine, Feed
from controlnext.engines.cache import discard, is_intact, processor, store
from controlnext.errors import BundleError, ControlNeXtError, InputError, MissingDependencyError, WorkError
from controlnext.manifest import Manifest, check_file

logger = logging.getLogger(__name__)

_GRAPH = "model.onnx"
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_SILENT = 4


class _CudaError(ControlNeXtError):
    """CUDA is part of this ONNX Runtime but does not work on this machine."""


class OrtBackend(Backend):
    """ONNX Runtime on ``device``: ``"cpu"``, ``"cuda:N"``, or ``"auto"``, which is CUDA where it is there."""

    def __init__(self, device: str = "auto") -> None:
        self.ort = _import_onnxruntime()
        self.device = device
        self.providers = self._providers(device)

    def _providers(self, device: str) -> list[tuple[str, dict[str, Any]]]:
        cuda = re.fullmatch(r"cuda:(\d+)", device)
        if not cuda and device not in ("auto", "cpu"):
            raise InputError(f"unknown device {device!r}; accepted: auto, cpu, cuda:0, cuda:1, ...")
        there = _CUDA in self.ort.get_available_providers()
        if cuda and not there:
            raise InputError(
                f"device {device} was asked for, but this ONNX Runtime has no CUDA; give device cpu, or run"
                ' pip uninstall onnxruntime, then pip install "controlnext[gpu]"'
            )
        if cuda or (device == "auto" and there):
            return [(_CUDA, {"device_id": int(cuda[1]) if cuda else 0}), (_CPU, {})]
        return [(_CPU, {})]

    def open(self, bundle: Path, manifest: Manifest, folder: str, *, cache: bool = True) -> Engine:
        """A session of ``<bundle>/<folder>/model.onnx``; only the files that are read are checked."""
        if folder not in manifest.graphs:
            raise BundleError(f"{bundle} has no graph {folder}; it has {', '.join(manifest.graphs)}")
        try:
            session = self._cached_session(bundle, manifest, folder) if cache else None
            if session is None:
                session = self._session(self._source(bundle, manifest, folder), self._options())
        except _CudaError as error:
            if self.device != "auto":
                raise WorkError(f"device {self.device}: {error}") from error
            logger.warning("going on without the GPU: %s", error)
            self.providers = [(_CPU, {})]
            return self.open(bundle, manifest, folder, cache=cache)
        return OrtEngine(session, manifest, folder)

    def _source(self, bundle: Path, manifest: Manifest, folder: str) -> Path:
        for name in manifest.files:
            if name.startswith(f"{folder}/"):
                check_file(bundle, manifest, name)
        return bundle / folder / _GRAPH

    def _cached_session(self, bundle: Path, manifest: Manifest, folder: str) -> Any | None:
        optimized = bundle / "engines" / f"onnxruntime-{self._key(manifest)}" / folder
        if not is_intact(optimized) and not self._optimize(bundle, manifest, folder, optimized):
            return None
        options = self._options()
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return self._session(optimized / _GRAPH, options)
        except WorkError as error:
            logger.warning("the optimized graph %s is not used: %s", optimized, error)
            discard(optimized)
            return None

    def _key(self, manifest: Manifest) -> str:
        """What the optimized graphs depend on: the bundle's graphs, ONNX Runtime, provider, processor."""
        files = manifest.files.items()
        graphs = {name: entry.sha256 for name, entry in files if name.split("/")[0] in manifest.graphs}
        parts = [graphs, self.ort.__version__, self.providers[0][0], processor(), "ORT_ENABLE_ALL"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _optimize(self, bundle: Path, manifest: Manifest, folder: str, optimized: Path) -> bool:
        """Have ONNX Runtime write the graph that it makes of the bundle's; whether that was possible."""
        source = self._source(bundle, manifest, folder)
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
                self._session(source, options)
        except (OSError, WorkError) as error:
            logger.info("the optimized graph of %s is not kept for the next time: %s", source, error)
            return False
        return True

    def _options(self) -> Any:
        options = self.ort.SessionOptions()
        # what goes wrong comes as an exception too
        options.log_severity_level = _SILENT
        return options

    def _session(self, graph: Path, options: Any) -> Any:
        try:
            session = self.ort.InferenceSession(
                str(graph), options, providers=self.providers, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime cannot load {graph}: {_first_line(error)}") from error
        if session.get_providers()[0] != self.providers[0][0]:
            raise _CudaError(
                "ONNX Runtime has CUDA but cannot start it; check the driver and the CUDA and cuDNN libraries"
                " or give device cpu"
            )
        return session


class OrtEngine(Engine):
    """One ONNX Runtime session."""

    def __init__(self, session: Any, manifest: Manifest, folder: str) -> None:
        super().__init__(manifest, folder)
        self._names = [spec.name for spec in self.outputs]
        self._session: Any | None = session

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        if self._session is None:
            raise InputError(f"the engine of {self.folder} is closed; open it again")
        try:
            outputs = self._session.run(self._names, dict(feed))
        except Exception as error:  # ONNX Runtime's errors share no other class
            raise WorkError(f"ONNX Runtime failed in {self.folder}: {_first_line(error)}") from error
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        self._session = None


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
