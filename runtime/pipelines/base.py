"""The base of the image and video pipelines: the loaded bundle, its sampler, its decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from controlnext.bundle.format import read_json
from controlnext.engines import BoundEngine
from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.denoise import Denoising, Step, denoise
from controlnext.runtime.guidance import guided_steps
from controlnext.runtime.loras.store import Loras
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.pipelines.controls import Controls
from controlnext.runtime.pipelines.decoding import LatentDecoder
from controlnext.runtime.pipelines.pretrained import Pretrained, refuse_torch_dtype
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import CommonRequest
from controlnext.runtime.samplers import Sampler, make_sampler
from controlnext.runtime.sizes import OwnSize, Size, choose_size, warn_if_large
from controlnext.types import Feed, FloatArray


class Pipeline(LatentDecoder, Pretrained):
    """A bundle ready to make images or clips. A context manager: leaving it closes the engines.

    An engine is opened when it is first needed and stays open until then. :meth:`load` returns an
    :class:`~controlnext.runtime.ImagePipeline` or a :class:`~controlnext.runtime.VideoPipeline`. Call it on
    one of these classes to let editors and type checkers see the arguments of the call.
    """

    _of_task: ClassVar[dict[str, type[Pipeline]]] = {}

    def __init_subclass__(cls, task: str | None = None) -> None:
        """Register the pipeline for families with this ``task``; :meth:`load` chooses by it."""
        super().__init_subclass__()
        if task is not None:
            Pipeline._of_task[task] = cls

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.family = bundle.family
        self.inputs = {spec.name: spec.spec() for spec in bundle.manifest.graphs[self.family.denoiser].inputs}
        self.controls = Controls(self.inputs, self.family.variant(bundle.manifest.variant))
        self._config = bundle.manifest.configs[self.family.denoiser]
        self._sizes: set[Size] = set()
        self._scheduler = read_json(bundle.file("scheduler/scheduler_config.json"))
        self._loras = Loras(bundle.manifest)

    def __repr__(self) -> str:
        """Return the class, the bundle and its precision."""
        manifest = self.bundle.manifest
        return f"{type(self).__name__}({str(self.bundle.path)!r}, {manifest.variant}, {manifest.precision})"

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Return the pipeline of an open bundle; raise :class:`InputError` if this class is not for it."""
        kind = cls._of_task[bundle.family.task]
        if not issubclass(kind, cls):
            raise InputError(
                f"{bundle.path} is a bundle of {bundle.family.title}; {cls.__name__} does not accept it;"
                f" load it with {kind.__name__}, or with Pipeline, which accepts every bundle"
            )
        return kind(bundle)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        backend: str = "auto",
        device: str = "auto",
        *,
        provider: str = "auto",
        threads: int | None = None,
        cache: bool = True,
        offload: bool = False,
        torch_dtype: object = None,
    ) -> Self:
        """Load the bundle in directory ``bundle``, or at a location such as ``s3://bucket/sdxl-fp16``, which
        is copied first (:func:`controlnext.bundle.remote.local_copy`).

        Args:
            backend: "onnxruntime", "openvino", "openvino-bf16", "tensorrt", "tensorrt-rtx", or "auto": for
                each graph a built engine of one of the TensorRTs where it works, else ONNX Runtime, or
                OpenVINO where that is faster or the only one. :attr:`backend` says which.
            device: "auto", "cpu", "cuda" (the first GPU) or "cuda:N".
            provider: ONNX Runtime's execution provider, a name of
                :data:`controlnext.engines.onnxruntime.providers.PROVIDERS`; by default that of the device.
            threads: number of threads on the CPU; by default one for each core that the process may use.
            cache: whether engines may cache files that are slow to make in the bundle's directory
                ``engines``.
            offload: keep only one engine in memory at a time. It takes less memory, but each engine is
                loaded again for every image or clip.
            torch_dtype: diffusers' argument, refused with what takes its place.

        Raises:
            BundleError: the directory is not a bundle, its schema is newer, or a file is missing or
                truncated. The checksum of a file is checked when it is read.
            InputError: an unknown backend or device, less than one thread, or a bundle for another class.
            MissingDependencyError: the backend's library is not installed.
        """
        refuse_torch_dtype(torch_dtype)
        return cls.of(
            Bundle.open(
                bundle, backend, device, provider=provider, threads=threads, cache=cache, offload=offload
            )
        )

    @property
    def backend(self) -> str:
        """The backend and device of the denoiser: ``"onnxruntime on cpu"``. Opens its engine if needed.

        ``bundle.backends`` has those of all open graphs.
        """
        return self.bundle.engine(self.bundle.family.denoiser).backend

    @property
    def loras(self) -> dict[str, int]:
        """The LoRAs that calls can choose: the rank of each, by name."""
        return self._loras.ranks

    def add_lora(self, name: str, path: str | Path) -> None:
        """Read a LoRA that calls choose by ``name`` (``lora={"style": 0.8}``); nothing is built or changed.

        ``path``: a ``.safetensors`` file as diffusers, peft or kohya's sd-scripts save it, or a directory
        with one.

        Raises:
            InputError: the bundle was exported without room for LoRAs, or with too little; or the name is
                taken.
            CheckpointError: the file is not a plain LoRA, or does not fit the model.
        """
        self._loras.add(name, path)

    def offer_loras(self, paths: Mapping[str, Path]) -> None:
        """Have calls choose LoRAs by these names that are read when they are first chosen.

        Nothing happens for a bundle without room for LoRAs.
        """
        self._loras.offer(paths)

    def remove_lora(self, name: str) -> None:
        """Forget a LoRA; runs that have it keep it. Raises :class:`InputError` for an unknown name."""
        self._loras.remove(name)

    def lora_checksum(self, name: str) -> str:
        """Return the SHA-256 of the file of a LoRA; raise :class:`InputError` for an unknown name."""
        return self._loras.checksum(name)

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return images or a clip; the subclasses define the arguments."""

    @abstractmethod
    def stream(self, *args: Any, **options: Any) -> Iterator[Step]:
        """Yield the steps of such a call one by one, for progress, previews and cancelling.

        The arguments are checked and the prompts are encoded before this returns. :meth:`decode` turns any
        step's latents into images; those of the last step are the result.
        """

    def steps(self, request: Any) -> Iterator[Step]:
        """Yield the steps as :meth:`stream` does, for the arguments in ``request``."""
        return denoise(self.start(request))

    def start(self, request: Any) -> Denoising:
        """Return the run of a request, its arguments checked and its prompts and controls encoded."""
        # refuse before sampling what cannot be decoded after it
        self.tiles(request.vae_tiling)
        inputs, own = self._read(request)
        size = self._warned(choose_size(self.family, self._config, request, own))
        guard = self._guard(*size)
        with guard.watch():
            return self._start(request, inputs, *size, guard)

    def _warned(self, size: Size) -> Size:
        """Return a size; log a warning at the first run at one far above that of the training images."""
        if size not in self._sizes:
            self._sizes.add(size)
            warn_if_large(self.family, self._config, size)
        return size

    @abstractmethod
    def finish(self, request: Any, latents: FloatArray) -> Any:
        """Return what a call returns for the latents of the last step."""

    def result_images(self, request: Any, latents: FloatArray) -> Iterator[Image.Image]:
        """Yield the PIL images of a request's result one by one."""
        return self.images(latents, request.chunk, request.vae_tiling)

    def _run(self, request: CommonRequest) -> Any:
        """Return what a call returns."""
        (last,) = deque(self.steps(request), maxlen=1)
        return self.finish(request, last.latents)

    def _images(self, request: Any, latents: FloatArray) -> Any:
        """Return the images of a run's last latents; None for output type "latent"."""
        if request.output_type == "latent":
            return None
        return self.decode(latents, request.output_type, request.chunk, request.vae_tiling)

    @abstractmethod
    def _read(self, request: Any) -> tuple[Any, OwnSize]:
        """Return the images of a request, and the size of the first of those that decide on the result's."""

    @abstractmethod
    def _start(self, request: Any, inputs: Any, height: int, width: int, guard: MemoryGuard) -> Denoising:
        """Return the run of a checked request at this size."""

    def close(self) -> None:
        """Release resources: close all engines."""
        self.bundle.close()

    def denoiser(self, constants: Feed) -> BoundEngine:
        """Return the denoiser with the inputs bound that are constant over a run; its prologue has run."""
        bound = self.bundle.engine(self.family.denoiser).bind(constants)
        bound.prepare()
        return bound

    def sampler(self, request: CommonRequest, begin: int = 0) -> Sampler:
        """Return the sampler of a run from step ``begin`` on; raise :class:`InputError` for one that the
        family does not have."""
        family, steps = self.family, request.steps
        name = family.default_sampler if request.sampler is None else request.sampler
        if name not in family.samplers:
            raise InputError(
                f"unknown sampler {name!r} for {family.title}; accepted: {', '.join(family.samplers)}",
                argument="sampler",
            )
        if all(given is None for given in steps.values()):
            steps["num_inference_steps"] = family.default_steps
        return make_sampler(name, self._scheduler, **steps, begin=begin)

    def guided_steps(self, request: CommonRequest, steps: int, rows: int) -> int:
        """Return how many of the ``steps`` of a guided run are guided; the others have ``rows`` rows.

        Raises :class:`InputError` if the engine does not accept so few.
        """
        guided, engine = guided_steps(steps, request.guidance_end), self.bundle.engine(self.family.denoiser)
        if guided < steps and rows < engine.least_rows:
            raise InputError(
                f"guidance_end is {request.guidance_end}, which leaves {rows} of {2 * rows} rows to the last"
                f" steps, but the engine of {engine.graph_name} was built for at least {engine.least_rows};"
                " set `guidance_end` to 1, or build the engine again, from one row",
                argument="guidance_end",
            )
        return guided

    def noise(self, request: CommonRequest, shape: tuple[int, ...], generator: TorchGenerator) -> FloatArray:
        """Return latents of unit variance: those of the request, else the next numbers of the generator."""
        if request.latents is None:
            return generator.randn(shape)
        if request.latents.shape != shape:
            raise InputError(
                f"latents have shape {request.latents.shape}, expected {shape}", argument="latents"
            )
        return request.latents

    def conditioning(self, height: int, width: int, rows: int) -> dict[str, np.ndarray]:
        """Return the denoiser's inputs that depend on the size alone, the same in all rows."""
        return {
            name: np.tile(np.array(make(height, width), np.float32), (rows, 1))
            for name, make in self.family.conditioning.items()
        }
