"""The built engines of a bundle that can run on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from controlnext.bundle.manifest import Manifest, shallow_name
from controlnext.engines import Backend, Engine, registry
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.tensorrt.backend import TrtBackend
from controlnext.engines.tensorrt.store import Profile
from controlnext.errors import InputError

logger = logging.getLogger(__name__)


class BuiltBackend(Backend):
    """The built engines of a backend, and another backend for all other graphs.

    ``profiles``: the shapes that the engines of ``built`` accept, by graph name. ``others``: the other
    backend, by default ONNX Runtime.
    """

    def __init__(
        self,
        built: Backend | None = None,
        profiles: Mapping[str, Profile] = MappingProxyType({}),
        others: Backend | None = None,
    ) -> None:
        self.profiles = profiles
        self._built = built
        self._others = others or OrtBackend()

    def can_cut(self, graph_name: str) -> bool:
        """Return whether the shallow part of a graph runs too: its engine is built, or none is."""
        return graph_name not in self.profiles or shallow_name(graph_name) in self.profiles

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        """Open the built engine of the graph ``graph_name``, or the graph with the other backend."""
        backend = self._built if self._built is not None and graph_name in self.profiles else self._others
        return backend.open(bundle, manifest, graph_name, cache=cache)


def usable_backends(bundle: Path, manifest: Manifest) -> dict[str, BuiltBackend]:
    """Return by name the backends whose built engines suit the GPU of this machine; none without a GPU.

    A warning says why other engines do not suit.
    """
    backends = {}
    for name, backend in registry.BACKENDS.items():
        if not issubclass(backend, TrtBackend):
            continue
        try:
            profiles = backend.profiles(bundle, manifest)
        except InputError as error:
            logger.warning("the engines of %s are not used: %s", name, error)
            continue
        if profiles:
            backends[name] = BuiltBackend(backend(), profiles)
    return backends
