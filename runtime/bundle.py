"""An open bundle: its manifest, its files, its engines."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Self

from controlnext.bundle.files import MANIFEST, sha256
from controlnext.bundle.format import check_file, check_size
from controlnext.bundle.manifest_check import check_complete
from controlnext.bundle.reader import read_manifest
from controlnext.bundle.remote import local_copy
from controlnext.closeable import Closeable
from controlnext.engines import Backend, Engine, select_backend
from controlnext.engines.offload import OffloadBackend
from controlnext.errors import BundleError, InputError
from controlnext.families import get_family
from controlnext.families.values import check_flags


class Bundle(Closeable):
    """The bundle in directory ``path``, whose files have the right sizes. A context manager that closes it.

    An engine is opened when it is first requested and stays open until the bundle is closed.
    """

    def __init__(self, path: str | Path, backend: Backend, cache: bool, *, whole: bool = True) -> None:
        """Read the manifest; ``whole``: raise :class:`BundleError` if a graph that a run needs is missing."""
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.family = get_family(self.manifest.family)
        try:
            if whole:
                check_complete(self.manifest, self.family)
        except BundleError as error:
            raise BundleError(f"{self.path / MANIFEST}: {error}; export the bundle again") from error
        for name in self.manifest.files:
            check_size(self.path, self.manifest, name)
        self._backend, self._cache = backend, cache
        self._engines: dict[str, Engine] | None = {}
        self._opening = Lock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        backend: str = "auto",
        device: str = "auto",
        *,
        provider: str = "auto",
        threads: int | None = None,
        cache: bool = True,
        offload: bool = False,
    ) -> Self:
        """Open a bundle; arguments and errors are those of :meth:`controlnext.runtime.Pipeline.load`."""
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"bundle is {path!r}; give the path of a directory", argument="bundle")
        check_flags(cache=cache, offload=offload)
        chosen = select_backend(backend, device, provider, threads)
        return cls(local_copy(path), OffloadBackend(chosen) if offload else chosen, cache)

    @cached_property
    def checksum(self) -> str:
        """The SHA-256 of the manifest, which tells the bundle from every other one."""
        return sha256(self.path / MANIFEST)

    def file(self, name: str) -> Path:
        """Return the path of a file after checking its checksum."""
        return check_file(self.path, self.manifest, name)

    def engine(self, graph_name: str) -> Engine:
        """Return the engine of the graph ``graph_name``. Opened once, even if several threads ask."""
        with self._opening:
            if self._engines is None:
                raise InputError(f"the bundle {self.path} is closed; load it again")
            if graph_name not in self._engines:
                self._engines[graph_name] = self._backend.open(
                    self.path, self.manifest, graph_name, cache=self._cache
                )
            return self._engines[graph_name]

    @property
    def backends(self) -> dict[str, str]:
        """The backend and device of each open graph, by name: ``"tensorrt-rtx on cuda:0 (...)"``."""
        return {graph_name: engine.backend for graph_name, engine in dict(self._engines or {}).items()}

    def close(self) -> None:
        """Release resources: close all engines."""
        with self._opening:
            for engine in (self._engines or {}).values():
                engine.close()
            self._engines = None
