"""The fastest that works, graph by graph: a built engine, else ONNX Runtime."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from controlnext.bundle.manifest import Manifest
from controlnext.engines.base import Backend, Engine, device_index
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.tensorrt.backend import TrtBackend
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import find_gpu
from controlnext.engines.tensorrt.store import has_engine
from controlnext.errors import ControlNeXtError, MissingDependencyError

logger = logging.getLogger(__name__)


class AutoBackend(Backend):
    """Built engines that suit this bundle, machine and library; for other graphs ONNX Runtime on ``device``
    with ``threads``.

    Raises as :class:`~controlnext.engines.onnxruntime.backend.OrtBackend` does. Without ONNX Runtime a GPU
    and a library that runs built engines are enough to begin with.
    """

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        self._device = device
        self._gpu = 0 if device == "auto" else device_index(device)
        self._onnxruntime: OrtBackend | MissingDependencyError
        try:
            self._onnxruntime = OrtBackend(device, threads=threads)
        except MissingDependencyError as error:
            if not self._has_gpu() or not any(importlib.util.find_spec(f.module) for f in FLAVORS.values()):
                raise
            self._onnxruntime = error

    def open(self, bundle: Path, manifest: Manifest, folder: str, *, cache: bool = True) -> Engine:
        engine = self._open_built(bundle, manifest, folder, cache)
        if engine is None:
            if isinstance(self._onnxruntime, MissingDependencyError):
                raise self._onnxruntime
            engine = self._onnxruntime.open(bundle, manifest, folder, cache=cache)
        logger.info("%s runs by %s", folder, engine.backend)
        return engine

    def _open_built(self, bundle: Path, manifest: Manifest, folder: str, cache: bool) -> Engine | None:
        """The first built engine that works; of those that do not a warning says why."""
        built = [name for name in FLAVORS if has_engine(bundle, folder, name)]
        if not built or not self._has_gpu():
            return None
        for name in built:
            try:
                return TrtBackend(name, self._device).open(bundle, manifest, folder, cache=cache)
            except ControlNeXtError as error:
                logger.warning("going on without the %s engine of %s: %s", name, folder, error)
        return None

    def _has_gpu(self) -> bool:
        return self._gpu is not None and find_gpu(self._gpu) is not None
