"""Engines: the bundle's graphs ready to run, whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from controlnext.bundle.manifest import Manifest
from controlnext.engines.auto import AutoBackend
from controlnext.engines.base import Backend, BoundEngine, Engine
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.engines.tensorrt.backend import TrtBackend
from controlnext.errors import InputError
from controlnext.types import Feed

BACKENDS: Mapping[str, Callable[[str, int | None], Backend]] = MappingProxyType(
    {
        "onnxruntime": lambda device, threads: OrtBackend(device, threads=threads),
        "tensorrt": lambda device, _threads: TrtBackend("tensorrt", device),
        "tensorrt-rtx": lambda device, _threads: TrtBackend("tensorrt-rtx", device),
        "auto": AutoBackend,
    }
)
"""What can run a graph, by name; each takes the name of a device and how many of the processor's threads it
may use."""

__all__ = ["BACKENDS", "Backend", "BoundEngine", "Engine", "Feed", "open_engine", "select_backend"]


def select_backend(
    backend: str = "auto", device: str = "auto", provider: str = "auto", threads: int | None = None
) -> Backend:
    """The backend of that name on that device; ``"auto"`` is for each graph the fastest that works.

    ``provider``: what of ONNX Runtime is to compute,
    :data:`~controlnext.engines.onnxruntime.providers.PROVIDERS`; other backends have none. ``threads``: how
    many threads compute on the processor, by default one for each core that the process may use.

    Raises :class:`~controlnext.errors.InputError` for an unknown backend or a device that it cannot use,
    :class:`~controlnext.errors.MissingDependencyError` where its library is not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; accepted: {', '.join(BACKENDS)}")
    if provider == "auto":
        return BACKENDS[backend](device, threads)
    if backend not in ("auto", "onnxruntime"):
        raise InputError(f"backend {backend} has no provider {provider}; leave one of them out")
    return OrtBackend(device, provider, threads)


def open_engine(
    bundle: Path,
    manifest: Manifest,
    folder: str,
    backend: str = "auto",
    device: str = "auto",
    *,
    provider: str = "auto",
    threads: int | None = None,
    cache: bool = True,
) -> Engine:
    """The engine of the bundle's graph ``folder``.

    ``device`` is ``"auto"``, ``"cpu"`` or ``"cuda:N"``. ``cache``: whether what is slow to make may be kept
    in the bundle's ``engines`` folder for the next time. ``threads``: as for :func:`select_backend`. Raises
    as that does, and :class:`~controlnext.errors.BundleError` for a missing or damaged graph file or built
    engine.
    """
    return select_backend(backend, device, provider, threads).open(bundle, manifest, folder, cache=cache)
