"""The pipeline: a bundle of any family, ready to make pictures or clips."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from PIL import Image

from controlnext.closeable import Closeable
from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.denoise import Step
from controlnext.runtime.pipelines.base import Pictures, Task
from controlnext.runtime.pipelines.image import ImageTask
from controlnext.runtime.pipelines.video import VideoTask
from controlnext.runtime.request import is_whole
from controlnext.runtime.vae import decode_latents, to_pil
from controlnext.types import FloatArray

TASKS: Mapping[str, Callable[[Bundle], Task]] = MappingProxyType({"image": ImageTask, "video": VideoTask})
"""What a family's ``task`` in the registry may be."""


class Pipeline(Closeable):
    """A bundle ready to make pictures or clips. A context manager: leaving it gives back the engines' memory.

    An engine is opened when it is first needed and kept until then.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.task = TASKS[bundle.family.task](bundle)

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
        """The pipeline of the bundle in folder ``bundle``.

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
                picture or clip.

        Raises:
            BundleError: there is no bundle, it is of a newer schema, or a file is missing or truncated. The
                checksum of a file is checked when it is read.
            InputError: an unknown backend or device, or less than one thread.
            MissingDependencyError: the backend's library is not installed.
        """
        return cls(
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

    def __call__(self, *args: Any, **options: Any) -> Any:
        """An :class:`Output` for the arguments of a :class:`Request`; from a video bundle a
        :class:`VideoOutput` for those of a :class:`VideoRequest`.

        Raises :class:`~controlnext.errors.InputError` for what the bundle cannot do, and
        :class:`~controlnext.errors.WorkError` where an engine fails or a number overflows, its subclass
        :class:`~controlnext.errors.OutOfMemoryError` where memory runs out.
        """
        request: Any = self.task.request(*args, **options)
        (last,) = deque(self.task.steps(request), maxlen=1)
        latent = request.output_type == "latent"
        decoding = (request.output_type, request.chunk, request.vae_tiling)
        pictures = None if latent else self.decode(last.latents, *decoding)
        return self.task.output(pictures, last.latents)

    def stream(self, *args: Any, **options: Any) -> Iterator[Step]:
        """The steps of such a call one after the other, for progress, previews and cancelling.

        The arguments are checked and the prompts encoded before this returns. :meth:`decode` makes pictures
        of any step's latents; those of the last step are the result.
        """
        return self.task.steps(self.task.request(*args, **options))

    def decode(
        self,
        latents: FloatArray,
        output_type: str = "pil",
        chunk: int | None = None,
        vae_tiling: bool = False,
    ) -> Pictures:
        """Pictures of a step's latents, as a call gives them with this output type, "pil" or "np".

        ``chunk``: how many frames of a clip are decoded at a time (those of a window of default size).
        ``vae_tiling``: as in a call.
        """
        if output_type not in ("pil", "np"):
            raise InputError(
                f"unknown output_type {output_type!r} for pictures; accepted: pil, np", argument="output_type"
            )
        pictures = list(self._decoded(latents, chunk, vae_tiling))
        if output_type == "np":
            return self.task.arrange(np.concatenate(pictures))
        return self.task.arrange([image for some in pictures for image in to_pil(some)])

    def images(
        self, latents: FloatArray, chunk: int | None = None, vae_tiling: bool = False
    ) -> Iterator[Image.Image]:
        """PIL images of a step's latents one after the other: a long clip is never in memory as a whole."""
        return (image for some in self._decoded(latents, chunk, vae_tiling) for image in to_pil(some))

    def _decoded(self, latents: FloatArray, chunk: int | None, vae_tiling: bool) -> Iterator[FloatArray]:
        size = self.task.request.default_chunk if chunk is None else chunk
        if not is_whole(size) or size < 1:
            raise InputError(f"chunk is {chunk!r}; give a whole number from 1 on", argument="chunk")
        rows = latents.reshape(-1, *latents.shape[-3:])
        config = self.bundle.manifest.configs["vae"]
        tiles = self.task.tiles(vae_tiling)
        guard = self.task.guard(*(self.bundle.family.vae_factor * side for side in rows.shape[2:]))
        with guard.watch():
            return guard.each(decode_latents(self.bundle.engine("vae_decoder"), config, rows, size, tiles))

    def close(self) -> None:
        """Give back the engines' memory."""
        self.bundle.close()
