"""The built engines of a bundle that can run on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from controlnext.bundle.manifest import Manifest
from controlnext.engines import Backend, Engine, registry
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.tensorrt.backend import TrtBackend
from controlnext.engines.tensorrt.store import Profile
from controlnext.errors import InputError

logger = logging.getLogger(__name__)


class BuiltBackend(Backend):
    """The engines that ``built`` runs; ONNX Runtime for all other graphs.

    ``profiles``: the shapes that those engines take, by the name of their graph.
    """

    def __init__(
        self, built: Backend | None = None, profiles: Mapping[str, Profile] = MappingProxyType({})
    ) -> None:
        self.profiles = profiles
        self._built = built
        self._others = OrtBackend()

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        backend = self._built if self._built is not None and graph_name in self.profiles else self._others
        return backend.open(bundle, manifest, graph_name, cache=cache)


def usable_backends(bundle: Path, manifest: Manifest) -> dict[str, BuiltBackend]:
    """By name those whose engines are there and suit the GPU of this machine; none without a GPU.

    Of engines that do not suit a warning says why.
    """
    backends = {}
    for name, backend in registry.BACKENDS.items():
        if not issubclass(backend, TrtBackend):
            continue
        try:
            profiles = backend.profiles(bundle, manifest)
        except InputError as error:
            logger.warning("the engines of %s are left out: %s", name, error)
            continue
        if profiles:
            backends[name] = BuiltBackend(backend(), profiles)
    return backends
