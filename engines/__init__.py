"""Engines: the graphs of a bundle ready to run, on any backend."""

from __future__ import annotations

from pathlib import Path

from controlnext.bundle.manifest import Manifest
from controlnext.engines import registry
from controlnext.engines.auto import AutoBackend
from controlnext.engines.base import Backend, BoundEngine, Engine
from controlnext.engines.onnxruntime.backend import OrtBackend
from controlnext.errors import InputError
from controlnext.types import Feed

__all__ = ["Backend", "BoundEngine", "Engine", "Feed", "check_backend", "open_engine", "select_backend"]


def select_backend(
    backend: str = "auto", device: str = "auto", provider: str = "auto", threads: int | None = None
) -> Backend:
    """Return the backend of that name on that device; ``"auto"`` takes the fastest that works for each graph.

    ``provider``: ONNX Runtime's execution provider, a key of
    :data:`~controlnext.engines.onnxruntime.providers.PROVIDERS`; other backends have none. ``threads``:
    number of threads on the CPU, by default one for each core that the process may use.

    Raises :class:`~controlnext.errors.InputError` for an unknown backend or a device that it cannot use,
    :class:`~controlnext.errors.MissingDependencyError` where its library is not installed.
    """
    check_backend(backend)
    backends: dict[str, type[Backend]] = {AutoBackend.name: AutoBackend, **registry.BACKENDS}
    if provider == "auto":
        return backends[backend](device, threads=threads)
    if backend not in (AutoBackend.name, OrtBackend.name):
        raise InputError(
            f"provider {provider} is not supported by backend {backend}; remove one of the two",
            argument="provider",
        )
    return OrtBackend(device, threads=threads, provider=provider)


def check_backend(backend: str) -> None:
    """Raise :class:`~controlnext.errors.InputError` for a name of no backend, wherever that may run."""
    accepted = (AutoBackend.name, *registry.BACKENDS)
    if backend not in accepted:
        raise InputError(f"unknown backend {backend!r}; accepted: {', '.join(accepted)}", argument="backend")


def open_engine(
    bundle: Path,
    manifest: Manifest,
    graph_name: str,
    backend: str = "auto",
    device: str = "auto",
    *,
    provider: str = "auto",
    threads: int | None = None,
    cache: bool = True,
) -> Engine:
    """Open the engine of the bundle's graph ``graph_name``.

    ``device`` is ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. ``cache``: whether files that are slow to
    make may be cached in the bundle's ``engines`` directory. ``threads``: as for :func:`select_backend`.

    Raises the errors of :func:`select_backend`, and :class:`~controlnext.errors.BundleError` for a missing or
    damaged graph file or built engine.
    """
    return select_backend(backend, device, provider, threads).open(bundle, manifest, graph_name, cache=cache)
