"""Runners of graphs: a bundle's engines, and a graph of another exporter."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.bench.messages import Holds, Seconds, TurnKind, Work
from controlnext.families.schema import VAE_DECODER

if TYPE_CHECKING:
    import numpy as np

    from controlnext.engines import Backend
    from controlnext.types import Feed


class EngineRunner:
    """Runner of a bundle's engines.

    ``backend``, ``device``, ``provider`` and ``offload`` are as for
    :meth:`controlnext.runtime.Pipeline.load`. ``cuda_graphs``: whether TensorRT may record steps as CUDA
    graphs. ``decoder``: name of the graph that decodes. ``images``: the last that were made.
    """

    images: np.ndarray | None = None

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
        from controlnext.bench.requests import decoder_feed, seconds_of

        if task == "image":
            return [self._image(work) for _ in range(runs)]
        if task == "decode":
            feed = decoder_feed(self.bundle, self.decoder, work)
            decode = partial(self.pipeline.bundle.engine(self.decoder).run, feed)
            return [{"decode": seconds_of(decode)} for _ in range(runs)]
        step = self._step(work)
        return [{"step": seconds_of(step)} for _ in range(runs)]

    def _image(self, work: Work) -> Seconds:
        from controlnext.bench.requests import image_arguments
        from controlnext.bench.timeline import image_timeline

        arguments = image_arguments(self.pipeline.bundle.manifest, work)
        seconds, images = image_timeline(self.pipeline, self.timed, arguments, tiny=work.tiny)
        self.images = as_bytes(images)
        return seconds

    def draw(self, work: Work, calls: str) -> np.ndarray:
        """Return the images of an exam; see :meth:`controlnext.bench.worker.Artist.draw`."""
        from controlnext.bench.requests import exam_calls
        from controlnext.bench.timeline import drawn_images

        drawn: list[Any] = []
        for call in exam_calls(calls, self.pipeline.bundle.manifest, work):
            latents = self.pipeline(**call, output_type="latent").latents
            drawn += drawn_images(self.pipeline, latents, tiny=work.tiny)
        return as_bytes(drawn)

    def _bound_step(self, work: Work) -> Callable[[], Any]:
        from controlnext.bench.requests import step_feed
        from controlnext.families import PER_STEP_INPUTS

        bundle, feed = self.pipeline.bundle, step_feed(self.bundle, work)
        bound = bundle.engine(bundle.family.denoiser).bind(
            {name: array for name, array in feed.items() if name not in PER_STEP_INPUTS}
        )
        per_step = {name: feed[name] for name in PER_STEP_INPUTS}
        return partial(bound.run, per_step)


def as_bytes(images: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Return PIL images, or arrays (..., H, W, 3) in [0, 1], as (N, H, W, 3) of uint8."""
    import numpy as np

    arrays = np.stack([np.asarray(image) for image in images])
    if arrays.dtype != np.uint8:
        arrays = (255 * arrays).round().astype(np.uint8)
    return arrays.reshape(-1, *arrays.shape[-3:])


class GraphRunner:
    """Runner of a denoiser's ONNX file ``graph``, with diffusers' input names, by ONNX Runtime with its
    defaults.

    The inputs are those of the denoiser of ``bundle``.
    """

    def __init__(self, bundle: Path, threads: int, *, graph: str, device: str = "auto") -> None:
        self.bundle, self.threads, self.graph, self.device = bundle, threads, graph, device
        self._run = cache(self._bound_run)

    def begin(self, _holds: Holds) -> Seconds:
        """Import ONNX Runtime and make the session."""
        started = time.perf_counter()
        from controlnext.engines.onnxruntime import library

        onnxruntime = library.load()
        from controlnext.engines.onnxruntime.providers import PROVIDERS, choose_provider

        imported = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        provider = choose_provider(onnxruntime.get_available_providers(), self.device, "auto")
        self.session = onnxruntime.InferenceSession(self.graph, options, providers=PROVIDERS[provider].names)
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def turn(self, _task: TurnKind, work: Work, runs: int) -> list[Seconds]:
        """Time ``runs`` runs of the graph."""
        from controlnext.bench.requests import seconds_of

        run = self._run(work)
        return [{"step": seconds_of(run)} for _ in range(runs)]

    def _bound_run(self, work: Work) -> Callable[[], Any]:
        """Return a function that runs the graph at the size of ``work``."""
        types = {"tensor(int64)": "int64", "tensor(float16)": "float16"}
        inputs = self.session.get_inputs()
        wanted = {spec.name: (len(spec.shape), types.get(spec.type, "float32")) for spec in inputs}
        return partial(self.session.run, None, self.feed(work, wanted))

    def feed(self, work: Work, wanted: Mapping[str, tuple[int, str]]) -> Feed:
        """Return the inputs ``wanted``, by name their rank and type."""
        from controlnext.bench.requests import step_feed

        feed, inputs = step_feed(self.bundle, work), {}
        for name, (rank, dtype) in wanted.items():
            array = feed[name]
            if name == "timestep":
                # one timestep for the whole batch, of the rank and type that the exporter chose
                array = array[:1].reshape([1] * rank)
            inputs[name] = array.astype(dtype)
        return inputs
