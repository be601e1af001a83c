"""Contestants that run graphs: a bundle's engines, and a graph that another exporter made."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controlnext.bench.messages import Holds, Task, Work
from controlnext.bench.requests import CHANGING, picture_arguments

if TYPE_CHECKING:
    from controlnext.engines import Backend

Seconds = dict[str, float]


class EngineRunner:
    """The engines of a bundle. ``backend``, ``device`` and ``provider`` as for
    :meth:`controlnext.runtime.Pipeline.load`; ``cuda_graphs``: whether TensorRT may record steps."""

    def __init__(
        self,
        bundle: Path,
        threads: int,
        *,
        device: str = "auto",
        backend: str = "auto",
        provider: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        self.bundle, self.threads = bundle, threads
        self.device, self.backend, self.provider = device, backend, provider
        self.cuda_graphs = cuda_graphs
        self._step = cache(self._bound_step)

    def begin(self, holds: Holds) -> Seconds:
        started = time.perf_counter()
        from controlnext.bench.timeline import TimedBackend
        from controlnext.runtime import Pipeline
        from controlnext.runtime.bundle import Bundle

        imported = time.perf_counter()
        self.timed = TimedBackend(self._select())
        self.pipeline = Pipeline(Bundle(self.bundle, self.timed, cache=True))
        bundle = self.pipeline.bundle
        folders = {"denoiser": [bundle.family.denoiser], "everything": list(bundle.manifest.graphs)}
        for folder in folders.get(holds, []):
            bundle.engine(folder)
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def _select(self) -> Backend:
        from controlnext.engines import select_backend
        from controlnext.engines.tensorrt.run import TrtBackend

        if self.cuda_graphs:
            return select_backend(self.backend, self.device, self.provider, self.threads)
        return TrtBackend(self.backend, self.device, graphs=False)

    def turn(self, task: Task, work: Work, runs: int) -> list[Seconds]:
        from controlnext.bench.timeline import picture_timeline

        if task == "picture":
            arguments = picture_arguments(self.pipeline.bundle.manifest, work)
            return [picture_timeline(self.pipeline, self.timed, arguments) for _ in range(runs)]
        step = self._step(work)
        return [{"step": timed(step)} for _ in range(runs)]

    def _bound_step(self, work: Work) -> Any:
        from controlnext.commands.trial import denoiser_feed

        bundle = self.pipeline.bundle
        feed = denoiser_feed(self.bundle, bundle.manifest, work.height, work.width, work.rows, work.frames)
        bound = bundle.engine(bundle.family.denoiser).bind(
            {name: array for name, array in feed.items() if name not in CHANGING}
        )
        changing = {name: feed[name] for name in CHANGING}
        return lambda: bound.run(changing)


class GraphRunner:
    """The graph ``graph`` of a denoiser in diffusers' input names, by ONNX Runtime as it comes; inputs are
    those of ``bundle``."""

    def __init__(self, bundle: Path, threads: int, *, graph: str, device: str = "auto") -> None:
        self.bundle, self.threads, self.graph, self.device = bundle, threads, graph, device

    def begin(self, _holds: Holds) -> Seconds:
        started = time.perf_counter()
        import onnxruntime

        from controlnext.engines.providers import PROVIDERS, choose_provider

        imported = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        provider = choose_provider(onnxruntime.get_available_providers(), self.device, "auto")
        self.session = onnxruntime.InferenceSession(self.graph, options, providers=PROVIDERS[provider])
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def turn(self, _task: Task, work: Work, runs: int) -> list[Seconds]:
        from controlnext.commands.trial import denoiser_feed
        from controlnext.manifest import read_manifest

        manifest = read_manifest(self.bundle)
        feed = denoiser_feed(self.bundle, manifest, work.height, work.width, work.rows, work.frames)
        given = {}
        for wanted in self.session.get_inputs():
            array = feed[wanted.name]
            if wanted.name == "timestep":
                # one number for all rows, of the type that the exporter chose
                array = array[:1].reshape([1] * len(wanted.shape))
            kind = {"tensor(int64)": np.int64, "tensor(float16)": np.float16}.get(wanted.type, np.float32)
            given[wanted.name] = array.astype(kind)
        return [{"step": timed(lambda: self.session.run(None, given))} for _ in range(runs)]


def timed(run: Any) -> float:
    """Seconds that ``run()`` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
