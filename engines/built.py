"""The built engines of a bundle that can run on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from controlnext.bundle.manifest import Manifest
from controlnext.engines import Backend, Engine
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.tensorrt.backend import TrtBackend
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import find_gpu
from controlnext.engines.tensorrt.store import Profile, find_engine, has_engine
from controlnext.errors import InputError

logger = logging.getLogger(__name__)


class BuiltBackend(Backend):
    """The engines that were built with the library ``name``; ONNX Runtime for all other graphs.

    ``profiles``: the shapes that those engines take, by the folder of their graph.
    """

    def __init__(self, name: str = "", profiles: Mapping[str, Profile] = MappingProxyType({})) -> None:
        self.profiles = profiles
        self._built = TrtBackend(name) if name else None
        self._others = OrtBackend()

    def open(self, bundle: Path, manifest: Manifest, folder: str, *, cache: bool = True) -> Engine:
        backend = self._built if self._built is not None and folder in self.profiles else self._others
        return backend.open(bundle, manifest, folder, cache=cache)


def usable_backends(bundle: Path, manifest: Manifest) -> dict[str, BuiltBackend]:
    """By name those whose engines are there and suit the GPU of this machine; none without a GPU.

    Of engines that do not suit a warning says why.
    """
    gpu, backends = find_gpu(), {}
    for name, flavor in FLAVORS.items():
        built = [folder for folder in manifest.graphs if has_engine(bundle, folder, name)]
        if gpu is None or not built:
            continue
        try:
            wanted = flavor.requirements(gpu)
            stored = {folder: find_engine(bundle, manifest, folder, wanted) for folder in built}
        except InputError as error:
            logger.warning("the engines of %s are left out: %s", name, error)
            continue
        profiles = {folder: engine.entry.key.profile for folder, engine in stored.items()}
        backends[name] = BuiltBackend(name, profiles)
    return backends
