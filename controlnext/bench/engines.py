"""Runners of graphs: a bundle's engines, and a graph of another exporter."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.bench.messages import Holds, Seconds, TurnKind, Work
from controlnext.families.schema import VAE_DECODER

if TYPE_CHECKING:
    from controlnext.engines import Backend


class EngineRunner:
    """Runner of a bundle's engines.

    ``backend``, ``device``, ``provider`` and ``offload`` are as for
    :meth:`controlnext.runtime.Pipeline.load`. ``cuda_graphs``: whether TensorRT may record steps as CUDA
    graphs. ``decoder``: name of the graph that decodes.
    """

    def __init__(
        self,
        bundle: Path,
        threads: int,
        *,
        device: str = "auto",
        backend: str = "auto",
        provider: str = "auto",
        cuda_graphs: bool = True,
        offload: bool = False,
        decoder: str = VAE_DECODER,
    ) -> None:
        self.bundle, self.threads = bundle, threads
        self.device, self.backend, self.provider = device, backend, provider
        self.cuda_graphs, self.offload, self.decoder = cuda_graphs, offload, decoder
        self._step = cache(self._bound_step)

    def begin(self, holds: Holds) -> Seconds:
        """Import the libraries and load the pipeline; see :meth:`controlnext.bench.worker.Runner.begin`."""
        started = time.perf_counter()
        from controlnext.bench.timeline import TimedBackend
        from controlnext.engines.offload import OffloadBackend
        from controlnext.runtime import Pipeline
        from controlnext.runtime.bundle import Bundle

        self.timed = TimedBackend(self._select())
        imported = time.perf_counter()
        backend = OffloadBackend(self.timed) if self.offload else self.timed
        # steps are also measured of bundles that have only the denoiser
        self.pipeline = Pipeline.of(Bundle(self.bundle, backend, cache=True, whole=holds != "denoiser"))
        bundle = self.pipeline.bundle
        graphs = {"denoiser": [bundle.family.denoiser], "everything": list(bundle.manifest.graphs)}
        for graph_name in graphs.get(holds, []):
            bundle.engine(graph_name)
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def _select(self) -> Backend:
        """Return the backend; this imports its library."""
        from controlnext.engines import registry, select_backend
        from controlnext.engines.tensorrt.backend import TrtBackend

        chosen = registry.BACKENDS.get(self.backend)
        if not self.cuda_graphs and chosen and issubclass(chosen, TrtBackend):
            return chosen(self.device, graphs=False)
        return select_backend(self.backend, self.device, self.provider, self.threads)

    def turn(self, task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` steps or images of the pipeline, or decoded latents."""
        from controlnext.bench.requests import decoder_feed, image_arguments, seconds_of
        from controlnext.bench.timeline import image_timeline

        if task == "image":
            arguments = image_arguments(self.pipeline.bundle.manifest, work)
            return [image_timeline(self.pipeline, self.timed, arguments) for _ in range(runs)]
        if task == "decode":
            feed = decoder_feed(self.bundle, self.decoder, work)
            decode = partial(self.pipeline.bundle.engine(self.decoder).run, feed)
            return [{"decode": seconds_of(decode)} for _ in range(runs)]
        step = self._step(work)
        return [{"step": seconds_of(step)} for _ in range(runs)]

    def _bound_step(self, work: Work) -> Callable[[], Any]:
        from controlnext.bench.requests import step_feed
        from controlnext.families import PER_STEP_INPUTS

        bundle, feed = self.pipeline.bundle, step_feed(self.bundle, work)
        bound = bundle.engine(bundle.family.denoiser).bind(
            {name: array for name, array in feed.items() if name not in PER_STEP_INPUTS}
        )
        per_step = {name: feed[name] for name in PER_STEP_INPUTS}
        return partial(bound.run, per_step)


class GraphRunner:
    """Runner of a denoiser's ONNX file ``graph``, with diffusers' input names, by ONNX Runtime with its
    defaults.

    The inputs are those of the denoiser of ``bundle``.
    """

    def __init__(self, bundle: Path, threads: int, *, graph: str, device: str = "auto") -> None:
        self.bundle, self.threads, self.graph, self.device = bundle, threads, graph, device

    def begin(self, _holds: Holds) -> Seconds:
        """Import ONNX Runtime and make the session."""
        started = time.perf_counter()
        import onnxruntime

        from controlnext.engines.onnxruntime.providers import PROVIDERS, choose_provider

        imported = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        provider = choose_provider(onnxruntime.get_available_providers(), self.device, "auto")
        self.session = onnxruntime.InferenceSession(self.graph, options, providers=PROVIDERS[provider].names)
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def turn(self, _task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` runs of the graph."""
        import numpy as np

        from controlnext.bench.requests import seconds_of, step_feed

        feed = step_feed(self.bundle, work)
        inputs = {}
        for spec in self.session.get_inputs():
            array = feed[spec.name]
            if spec.name == "timestep":
                # one timestep for the whole batch, of the rank and type that the exporter chose
                array = array[:1].reshape([1] * len(spec.shape))
            dtype = {"tensor(int64)": np.int64, "tensor(float16)": np.float16}.get(spec.type, np.float32)
            inputs[spec.name] = array.astype(dtype)
        run = partial(self.session.run, None, inputs)
        return [{"step": seconds_of(run)} for _ in range(runs)]
