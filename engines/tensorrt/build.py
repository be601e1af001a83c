"""Build engines with Polygraphy's loaders."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from controlnext.bundle.files import new_file
from controlnext.bundle.format import DATA, check_graph, model_file
from controlnext.bundle.manifest import Manifest
from controlnext.engines.tensorrt.flavors import Flavor
from controlnext.engines.tensorrt.memory import released_pages
from controlnext.engines.tensorrt.profile import Range, make_profile
from controlnext.engines.tensorrt.progress import make_monitor
from controlnext.engines.tensorrt.store import (
    ENGINE,
    PORTABLE,
    Entry,
    Key,
    StoredEngine,
    engine_directory,
    exclusive,
    graph_key,
    kept_engine,
    new_engine,
    write_entry,
)
from controlnext.engines.tensorrt.stream import make_writer
from controlnext.errors import WorkError
from controlnext.types import Progress

_TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class BuildOptions:
    """The options of the builder.

    ``hardware``: as :meth:`~controlnext.engines.tensorrt.flavors.Flavor.hardware` returns it.
    ``optimization_level``: 0 (quick) to 5 (thorough). ``workspace``: bytes of GPU memory that a layer may use
    besides its tensors; None for all memory. ``strip_weights``: build without weights; they are read from the
    bundle's graph when the engine is loaded.
    """

    hardware: str
    optimization_level: int = 3
    workspace: int | None = None
    strip_weights: bool = False


@dataclass(frozen=True)
class Built:
    """An engine, and whether it was built now (``new``) or before."""

    engine: StoredEngine
    new: bool


def build_engine(
    bundle: Path,
    manifest: Manifest,
    graph_name: str,
    flavor: Flavor,
    ranges: Mapping[str, Range],
    options: BuildOptions,
    *,
    force: bool = False,
    report: Progress = lambda _what, _done: None,
) -> Built:
    """Build the engine of the graph ``graph_name`` into the bundle, unless it already has the same one.

    ``ranges``: those of :func:`~controlnext.engines.tensorrt.profile.choose_ranges`. ``force``: build in
    any case. Waits for another process that builds the same engine.

    Raises :class:`~controlnext.errors.WorkError` with the library's own message if the build fails,
    :class:`~controlnext.errors.BundleError` for a missing or damaged graph file.
    """
    key = Key(
        **graph_key(manifest, graph_name),
        backend=flavor.name,
        version=flavor.version(),
        hardware=options.hardware,
        profile=make_profile(manifest, graph_name, ranges),
        options={
            "optimization_level": options.optimization_level,
            "workspace": options.workspace,
            "strip_weights": options.strip_weights,
        },
    )
    place = engine_directory(bundle, flavor.name, options.hardware, graph_name)
    report("waiting for other builds", 0.0)
    with exclusive(place):
        kept = None if force else kept_engine(place, key)
        if kept is not None:
            return Built(kept, new=False)
        started = time.monotonic()
        check_graph(bundle, manifest, graph_name)
        graph = bundle / model_file(graph_name)
        with new_engine(place) as made:
            with (made / ENGINE).open("wb") as file:
                _build(graph, flavor, key, place.parent, report, file)
            sizes = {name: str(size) for name, size in ranges.items()}
            entry = Entry(key, round(time.monotonic() - started, 1), sizes)
            write_entry(made, entry)
    report("done", 1.0)
    return Built(StoredEngine(place / ENGINE, entry), new=True)


def _build(graph: Path, flavor: Flavor, key: Key, caches: Path, report: Progress, file: BinaryIO) -> None:
    """Write the engine to ``file``."""
    trt, library = flavor.polygraphy(), flavor.library()
    from polygraphy.exception import PolygraphyException

    report("reading the graph", 0.0)
    monitor = make_monitor(library, report)
    writer = make_writer(library, file)
    with _messages() as errors, released_pages(graph.with_name(DATA)):
        try:
            loader = trt.NetworkFromOnnxPath(str(graph), strongly_typed=True)
            # a dedicated kernel is still used if there is one: such engines are identical
            builder, network, _parser = trt.set_decomposable_attentions(loader)
            config = _config(flavor, key, caches, monitor)(builder, network)
            done = builder.build_serialized_network_to_stream(network, config, writer)
        except PolygraphyException as error:
            reason = "; ".join(dict.fromkeys(errors)) or str(error)
            raise WorkError(f"{flavor.title} refuses to build {graph}: {reason}") from error
    if monitor.interrupted:
        raise KeyboardInterrupt
    if writer.error is not None:
        raise writer.error
    if not done:
        raise WorkError(f"{flavor.title} refuses to build {graph}: {'; '.join(dict.fromkeys(errors))}")
    if not flavor.ahead_of_time:
        with new_file(caches / _TIMING_CACHE) as timings:
            timings.write_bytes(config.get_timing_cache().serialize())


def _config(flavor: Flavor, key: Key, caches: Path, monitor: Any) -> Any:
    """Return Polygraphy's loader of the builder's configuration."""
    trt, library = flavor.polygraphy(), flavor.library()
    profile = trt.Profile()
    for name, shapes in key.profile.items():
        profile.add(name, *shapes)
    limits = {library.MemoryPoolType.WORKSPACE: key.options["workspace"]}
    common = {
        "profiles": [profile],
        "progress_monitor": monitor,
        "builder_optimization_level": key.options["optimization_level"],
        "memory_pool_limits": None if key.options["workspace"] is None else limits,
        "strip_plan": key.options["strip_weights"],
    }
    if flavor.ahead_of_time:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        named = [] if key.hardware == PORTABLE else key.hardware.split("+")
        targets = [(int(name[2:-1]), int(name[-1])) for name in named]
        config = CreateConfigRTX(**common, compute_capabilities=targets or None)
    else:
        timings = caches / _TIMING_CACHE
        config = trt.CreateConfig(**common, load_timing_cache=str(timings) if timings.exists() else None)

    def without_tf32(_builder: Any, _network: Any, config: Any) -> None:
        # TF32 would not be float32; float16 is the way to more speed
        config.clear_flag(library.BuilderFlag.TF32)

    return trt.PostprocessConfig(config, without_tf32)


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect the error messages of Polygraphy and the library instead of printing them."""
    from polygraphy.logger import G_LOGGER

    messages: list[str] = []
    handler = _Collector(messages)
    # critical messages are raised as exceptions too
    handler.addFilter(lambda record: record.levelno == logging.ERROR)
    logger = logging.getLogger("Polygraphy")
    settings = {"use_python_logging_system": True, "colors": False, "letter": False}
    before = {name: getattr(G_LOGGER, name) for name in settings}
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    _set(G_LOGGER, settings)
    try:
        with G_LOGGER.verbosity(G_LOGGER.ERROR):
            yield messages
    finally:
        _set(G_LOGGER, before)
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


def _set(target: Any, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(target, name, value)
