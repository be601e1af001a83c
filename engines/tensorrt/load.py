"""Load a built engine into the GPU's memory and create its execution contexts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from controlnext.engines import artifact_cache
from controlnext.engines.tensorrt.flavors import Flavor
from controlnext.engines.tensorrt.store import StoredEngine
from controlnext.errors import WorkError

logger = logging.getLogger(__name__)

_KERNELS = "kernels.bin"


@dataclass
class LoadOptions:
    """The engine to load, ``stored``, and how to load it.

    ``graph``: the bundle's graph that it was built from. ``kernels``: the directory that caches kernels, or
    None. ``graphs``: whether runs are repeated as CUDA graphs.
    """

    flavor: Flavor
    stored: StoredEngine
    graph: Path
    kernels: Path | None
    graphs: bool


class Loaded:
    """An engine in the memory of the current GPU.

    ``records``: whether its CUDA graphs are to be recorded, because the library does not do it. The contexts
    then share memory for their activations, ``activation_size`` bytes, which is set by their user.

    Raises :class:`~controlnext.errors.WorkError` with the library's own message if it fails.
    """

    def __init__(self, options: LoadOptions) -> None:
        self._options, library = options, options.flavor.library()
        self._log = _make_log(library)
        self._runtime: Any = library.Runtime(self._log)
        with options.stored.path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        self._check(self._engine, "load")
        if options.stored.entry.key.options.get("strip_weights"):
            self._refit(library)
        config = self._engine.create_runtime_config()
        self._kernels = _Kernels(config, options.kernels) if options.flavor.ahead_of_time else None
        if options.flavor.ahead_of_time and options.graphs:
            config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.records = options.graphs and not options.flavor.ahead_of_time
        if self.records:
            config.set_execution_context_allocation_strategy(
                library.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        self._config: Any = config

    @property
    def activation_size(self) -> int:
        """The bytes that the activations of a context need at the largest shapes."""
        # CUDA refuses to allocate nothing
        return max(int(self._engine.device_memory_size_v2), 1)

    def make_context(self) -> Any:
        """Return a new execution context."""
        context = self._engine.create_execution_context(self._config)
        self._check(context, "start")
        return context

    def _refit(self, library: Any) -> None:
        """Add the weights to an engine that was built without them."""
        refitter = library.Refitter(self._engine, self._log)
        parser = library.OnnxParserRefitter(refitter, self._log)
        done = parser.refit_from_file(str(self._options.graph)) and refitter.refit_cuda_engine()
        self._check(done or None, "put the weights into")

    def _check(self, made: Any, what: str) -> None:
        if made is None:
            raise self.error(what)

    def error(self, what: str) -> WorkError:
        """Return the error that the library cannot ``what`` the engine, with the reasons that it logged."""
        reasons = "; ".join(dict.fromkeys(self._log.errors)) or "it gives no reason"
        self._log.errors.clear()
        return WorkError(f"{self._options.flavor.title} cannot {what} {self._options.stored.path}: {reasons}")

    def save_kernels(self) -> None:
        """Cache the kernels that were compiled, if the library compiles any."""
        if self._kernels is not None:
            self._kernels.save()

    def close(self) -> None:
        """Release resources in the reverse order of their creation, after all contexts are released."""
        self._kernels = self._config = self._engine = self._runtime = None


class _Kernels:
    """The kernels that TensorRT-RTX compiles for this GPU, cached so that the next start is fast.

    The library itself checks whether they suit the GPU, the driver and its version.
    """

    def __init__(self, config: Any, directory: Path | None) -> None:
        self._directory, self._content = directory, b""
        self._cache = config.create_runtime_cache()
        if directory is not None and artifact_cache.is_intact(directory):
            content = (directory / _KERNELS).read_bytes()
            if self._cache.deserialize(content):
                self._content = content
            else:
                logger.info(
                    "the kernels in %s are for another GPU or version and are compiled again", directory
                )
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache if kernels were compiled; if that fails, the next start is slower."""
        content = bytes(self._cache.serialize())
        if self._directory is None or content == self._content:
            return
        try:
            with artifact_cache.store(self._directory) as made:
                (made / _KERNELS).write_bytes(content)
        except OSError as error:
            logger.info("the kernels are not cached in %s: %s", self._directory, error)


def _make_log(library: Any) -> Any:
    """Return a logger for the library that collects errors in ``errors``."""

    class Log(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors.append(message)
            elif severity == library.ILogger.WARNING:
                logger.info("%s: %s", library.__name__, message)

    return Log()
