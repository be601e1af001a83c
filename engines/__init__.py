"""Engines: the bundle's graphs ready to run, whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from controlnext.engines.base import Backend, BoundEngine, Engine, Feed
from controlnext.engines.onnxruntime import OrtBackend
from controlnext.errors import InputError
from controlnext.manifest import Manifest

BACKENDS: Mapping[str, Callable[[str], Backend]] = MappingProxyType({"onnxruntime": OrtBackend})
"""What can run a graph, by name, best first; each takes the name of a device."""

__all__ = ["BACKENDS", "Backend", "BoundEngine", "Engine", "Feed", "open_engine", "select_backend"]


def select_backend(backend: str = "auto", device: str = "auto") -> Backend:
    """The backend of that name on that device; ``"auto"`` is the first of :data:`BACKENDS`.

    Raises :class:`~controlnext.errors.InputError` for an unknown backend or a device that it cannot use,
    :class:`~controlnext.errors.MissingDependencyError` where its library is not installed.
    """
    name = next(iter(BACKENDS)) if backend == "auto" else backend
    if name not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; accepted: auto, {', '.join(BACKENDS)}")
    return BACKENDS[name](device)


def open_engine(
    bundle: Path,
    manifest: Manifest,
    folder: str,
    backend: str = "auto",
    device: str = "auto",
    *,
    cache: bool = True,
) -> Engine:
    """The engine of the bundle's graph ``folder``.

    ``device`` is ``"auto"``, ``"cpu"`` or ``"cuda:N"``. ``cache``: whether what is slow to make may be kept
    in the bundle's ``engines`` folder for the next time. Raises as :func:`select_backend` does, and
    :class:`~controlnext.errors.BundleError` for a missing or damaged graph file.
    """
    return select_backend(backend, device).open(bundle, manifest, folder, cache=cache)
