"""What image and video pipelines share: a bundle that is loaded, its sampler, its decoder."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from controlnext.closeable import Closeable
from controlnext.engines import BoundEngine
from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.denoise import Step
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.pipelines.controls import Controls
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import CommonRequest, is_whole
from controlnext.runtime.samplers import Sampler, make_sampler
from controlnext.runtime.sizes import Size, choose_size, warn_if_large
from controlnext.runtime.tiling import Tiles
from controlnext.runtime.vae import decode_latents, to_pil
from controlnext.types import Feed, FloatArray

Images = list[Image.Image] | list[list[Image.Image]] | FloatArray


class Pipeline(Closeable):
    """A bundle ready to make images or clips. A context manager: leaving it gives back the engines' memory.

    An engine is opened when it is first needed and kept until then. :meth:`load` gives an
    :class:`~controlnext.runtime.ImagePipeline` or a :class:`~controlnext.runtime.VideoPipeline`; loaded by
    one of these names, the arguments of its call are known to editors and type checkers.
    """

    request: ClassVar[type[CommonRequest]]
    """The arguments of a call, with their checks."""
    memory_savers: ClassVar[tuple[str, ...]]
    """Arguments with which a run takes less memory."""
    _of_task: ClassVar[dict[str, type[Pipeline]]] = {}

    def __init_subclass__(cls, task: str | None = None) -> None:
        """``task``: what the families that :meth:`load` takes this pipeline for have as ``task``."""
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
        self._scheduler = json.loads(bundle.file("scheduler/scheduler_config.json").read_text())

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """The pipeline of an open bundle; raises :class:`InputError` where this class is for others."""
        kind = cls._of_task[bundle.family.task]
        if not issubclass(kind, cls):
            raise InputError(
                f"{bundle.path} is a bundle of {bundle.family.title}; {cls.__name__} takes none of these:"
                f" load it with {kind.__name__}, or with Pipeline, which takes bundles of every model"
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
    ) -> Self:
        """Load the bundle in folder ``bundle``.

        Args:
            backend: "onnxruntime", "tensorrt", "tensorrt-rtx", or "auto": for each graph a built engine of
                one of the TensorRTs where it works, else ONNX Runtime. :attr:`backend` says which.
            device: "auto", "cpu" or "cuda:N".
            provider: what of ONNX Runtime computes, a name of
                :data:`controlnext.engines.onnxruntime.providers.PROVIDERS`; by the device unless given.
            threads: how many threads compute on the processor; unless given, one for each core that the
                process may use.
            cache: whether engines may keep what is slow to make in the bundle's folder ``engines``.
            offload: whether one engine at a time is in memory: less of it, but each is loaded again for every
                image or clip.

        Raises:
            BundleError: there is no bundle, it is of a newer schema, or a file is missing or truncated. The
                checksum of a file is checked when it is read.
            InputError: an unknown backend or device, less than one thread, or a bundle for another class.
            MissingDependencyError: the backend's library is not installed.
        """
        return cls.of(
            Bundle.open(
                bundle, backend, device, provider=provider, threads=threads, cache=cache, offload=offload
            )
        )

    @property
    def backend(self) -> str:
        """What runs the denoiser, and where: ``"onnxruntime on cpu"``. Opens it if that did not happen yet.

        Those of all open graphs: ``bundle.backends``.
        """
        return self.bundle.engine(self.bundle.family.denoiser).backend

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Make images or a clip; each pipeline's own call says of what."""

    @abstractmethod
    def stream(self, *args: Any, **options: Any) -> Iterator[Step]:
        """The steps of such a call one after the other, for progress, previews and cancelling.

        The arguments are checked and the prompts encoded before this returns. :meth:`decode` makes images
        of any step's latents; those of the last step are the result.
        """

    def steps(self, request: Any) -> Iterator[Step]:
        """As :meth:`stream`, for arguments that are one ``request``."""
        # what cannot be decoded is refused before it is sampled
        self.tiles(request.vae_tiling)
        controls, control_size = self._read(request)
        size = choose_size(self.family, self._config, request, control_size)
        if size not in self._sizes:
            self._sizes.add(size)
            warn_if_large(self.family, self._config, size)
        guard = self._guard(*size)
        with guard.watch():
            return guard.each(self._start(request, controls, *size))

    def _run(self, request: CommonRequest) -> tuple[Any, FloatArray]:
        """Images (None for output type "latent") and latents of a whole run."""
        (last,) = deque(self.steps(request), maxlen=1)
        if request.output_type == "latent":
            return None, last.latents
        images = self.decode(last.latents, request.output_type, request.chunk, request.vae_tiling)
        return images, last.latents

    @abstractmethod
    def _read(self, request: Any) -> tuple[list[Any], Size]:
        """What each control takes, and the size of the first one's (first) image."""

    @abstractmethod
    def _start(self, request: Any, controls: list[Any], height: int, width: int) -> Iterator[Step]:
        """:meth:`steps` of a request that can be decoded, at this size."""

    @abstractmethod
    def _arrange(self, images: Any) -> Images:
        """PIL images, or an array (N, H, W, 3), as a call returns them."""

    def decode(
        self,
        latents: FloatArray,
        output_type: str = "pil",
        chunk: int | None = None,
        vae_tiling: bool = False,
    ) -> Images:
        """Images of a step's latents, as a call gives them with this output type, "pil" or "np".

        ``chunk``: how many frames of a clip are decoded at a time (those of a window of default size).
        ``vae_tiling``: as in a call.
        """
        if output_type not in ("pil", "np"):
            raise InputError(
                f"unknown output_type {output_type!r} for images; accepted: pil, np", argument="output_type"
            )
        images = list(self._decoded(latents, chunk, vae_tiling))
        if output_type == "np":
            return self._arrange(np.concatenate(images))
        return self._arrange([image for some in images for image in to_pil(some)])

    def images(
        self, latents: FloatArray, chunk: int | None = None, vae_tiling: bool = False
    ) -> Iterator[Image.Image]:
        """PIL images of a step's latents one after the other: a long clip is never in memory as a whole."""
        return (image for some in self._decoded(latents, chunk, vae_tiling) for image in to_pil(some))

    def _decoded(self, latents: FloatArray, chunk: int | None, vae_tiling: bool) -> Iterator[FloatArray]:
        size = self.request.default_chunk if chunk is None else chunk
        if not is_whole(size) or size < 1:
            raise InputError(f"chunk is {chunk!r}; give a whole number from 1 on", argument="chunk")
        rows = latents.reshape(-1, *latents.shape[-3:])
        config = self.bundle.manifest.configs["vae"]
        tiles = self.tiles(vae_tiling)
        guard = self._guard(*(self.family.vae_factor * side for side in rows.shape[2:]))
        with guard.watch():
            return guard.each(decode_latents(self.bundle.engine("vae_decoder"), config, rows, size, tiles))

    def close(self) -> None:
        """Give back the engines' memory."""
        self.bundle.close()

    def _guard(self, height: int, width: int) -> MemoryGuard:
        """For what runs at a size in pixels."""
        return MemoryGuard(height, width, self.memory_savers)

    def denoiser(self, constants: Feed) -> BoundEngine:
        """The denoiser with the inputs in place that stay the same over a run, or most of it."""
        return self.bundle.engine(self.family.denoiser).bind(constants)

    def sampler(self, request: CommonRequest) -> Sampler:
        family, steps = self.family, request.num_inference_steps
        name = family.default_sampler if request.sampler is None else request.sampler
        if name not in family.samplers:
            raise InputError(
                f"unknown sampler {name!r}; {family.title} takes {', '.join(family.samplers)}",
                argument="sampler",
            )
        return make_sampler(name, self._scheduler, family.default_steps if steps is None else steps)

    def tiles(self, vae_tiling: bool) -> Tiles | None:
        """The tiles that latents are decoded in; None without ``vae_tiling``.

        Raises :class:`InputError` where the VAE cannot decode in tiles.
        """
        if not isinstance(vae_tiling, (bool, np.bool_)):
            raise InputError(f"vae_tiling is {vae_tiling!r}; give True or False", argument="vae_tiling")
        if not vae_tiling:
            return None
        if not self.family.vae_tiling:
            raise InputError(
                f"vae_tiling was given, but the VAE of {self.family.title} does not decode in tiles; leave it"
                " out",
                argument="vae_tiling",
            )
        return Tiles.of(self.bundle.manifest.configs["vae"].get("sample_size"), self.family.vae_factor)

    def noise(self, request: CommonRequest, shape: tuple[int, ...], generator: TorchGenerator) -> FloatArray:
        """Latents of unit variance: what was given, else the next numbers of the generator."""
        if request.latents is None:
            return generator.randn(shape)
        if request.latents.shape != shape:
            raise InputError(
                f"latents have shape {request.latents.shape}, expected {shape}", argument="latents"
            )
        return request.latents

    def conditioning(self, height: int, width: int, rows: int) -> dict[str, np.ndarray]:
        """The denoiser's inputs that follow from the size, the same in all rows."""
        return {
            name: np.tile(np.array(make(height, width), np.float32), (rows, 1))
            for name, make in self.family.conditioning.items()
        }
