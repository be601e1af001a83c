"""The pipeline of the image families: from a request to pictures."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.conditioning import SIZE_CONDITIONING, Conditioner
from controlnext.runtime.denoise import Step, control_schedule, denoise
from controlnext.runtime.images import Bands, control_array, decode_latents, read_pictures, to_pil
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import Request, is_whole
from controlnext.runtime.samplers import Sampler, make_sampler

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Output:
    """What a call gives.

    Attributes:
        images: PIL images; with output type "np" (N, H, W, 3) float32 in [0, 1]; with "latent" None.
        latents: (N, C, H/8, W/8) float32 as the last step left them, not unscaled for the VAE.
    """

    images: list[Image.Image] | FloatArray | None
    latents: FloatArray


class Pipeline:
    """A bundle ready to make pictures. A context manager: leaving it gives back the engines' memory.

    An engine is opened when it is first needed and kept until then.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._condition = Conditioner(bundle)
        self._scheduler = json.loads(bundle.file("scheduler/scheduler_config.json").read_text())

    @classmethod
    def load(
        cls, bundle: str | Path, backend: str = "auto", device: str = "auto", *, cache: bool = True
    ) -> Self:
        """The pipeline of the bundle in folder ``bundle``.

        Args:
            backend: "auto" or a name of :data:`controlnext.engines.BACKENDS`.
            device: "auto", "cpu" or "cuda:N".
            cache: whether engines may keep what is slow to make in the bundle's folder ``engines``.

        Raises:
            BundleError: there is no bundle, it is of a newer schema, or a file is missing or truncated. The
                checksum of a file is checked when it is read.
            InputError: an unknown backend or device.
            MissingDependencyError: the backend's library is not installed.
        """
        return cls(Bundle.open(bundle, backend, device, cache))

    def __call__(self, *args: Any, **options: Any) -> Output:
        """Pictures for the arguments of a :class:`~controlnext.runtime.request.Request`.

        Raises :class:`~controlnext.errors.InputError` for what the bundle cannot do, and
        :class:`~controlnext.errors.WorkError` where an engine fails or a number overflows.
        """
        request = Request(*args, **options)
        (last,) = deque(self._steps(request), maxlen=1)
        images = None if request.output_type == "latent" else self.decode(last.latents, request.output_type)
        return Output(images, last.latents)

    def stream(self, *args: Any, **options: Any) -> Iterator[Step]:
        """The steps of such a call one after the other, for progress, previews and cancelling.

        The arguments are checked and the prompts encoded before this returns. :meth:`decode` makes pictures
        of any step's latents; those of the last step are the result.
        """
        return self._steps(Request(*args, **options))

    def decode(self, latents: FloatArray, output_type: str = "pil") -> list[Image.Image] | FloatArray:
        """Pictures of latents (N, C, h, w): PIL images or, with "np", (N, 8h, 8w, 3) float32 in [0, 1]."""
        if output_type not in ("pil", "np"):
            raise InputError(f"unknown output_type {output_type!r} for pictures; accepted: pil, np")
        config = self.bundle.manifest.configs["vae"]
        pictures = decode_latents(self.bundle.engine("vae_decoder"), config, latents)
        return to_pil(pictures) if output_type == "pil" else pictures

    def close(self) -> None:
        """Give back the engines' memory."""
        self.bundle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _steps(self, request: Request) -> Iterator[Step]:
        family = self.bundle.family
        sampler = self._sampler(request)
        generator = TorchGenerator(request.seed)
        pictures = _control_pictures(request)
        height, width = self._size(request, pictures)
        latents = self._latents(request, height, width, generator)
        guidance = family.default_guidance if request.guidance_scale is None else request.guidance_scale
        halves = 2 if guidance > 1 else 1
        scale = np.tile(_control_scale(request), halves)
        constants = self._condition(request, guided=halves == 2)
        for name in family.conditioning:
            constants[name] = np.tile(SIZE_CONDITIONING[name](height, width), (len(scale), 1))
        control = control_array(pictures, height, width)
        if len(control) > 1:
            control = np.tile(np.repeat(control, request.num_images_per_prompt, axis=0), (halves, 1, 1, 1))
        return denoise(
            self.bundle.engine(family.denoiser).run,
            sampler,
            latents * np.float32(sampler.init_noise_sigma),
            {**constants, "control_image": control},
            control_schedule(scale, len(sampler.timesteps), request.control_start, request.control_end),
            float(guidance) if halves == 2 else None,
            generator,
        )

    def _sampler(self, request: Request) -> Sampler:
        family, steps = self.bundle.family, request.num_inference_steps
        name = family.default_sampler if request.sampler is None else request.sampler
        if name not in family.samplers:
            raise InputError(f"unknown sampler {name!r}; {family.title} takes {', '.join(family.samplers)}")
        return make_sampler(name, self._scheduler, family.default_steps if steps is None else steps)

    def _size(self, request: Request, pictures: Sequence[Bands]) -> tuple[int, int]:
        """Height and width in pixels: as asked for, else those of the latents or of the control picture."""
        factor = self.bundle.family.vae_factor
        if request.latents is None:
            source, found = "control picture", pictures[0][0].size[::-1]
        else:
            source, found = "latents", tuple(factor * size for size in request.latents.shape[-2:])
        sizes = {}
        for name, default in zip(("height", "width"), found, strict=False):
            asked = getattr(request, name)
            size = default if asked is None else asked
            if not is_whole(size) or size < factor or size % factor:
                given = f"{name} is {size!r}" if asked is not None else f"the {source}'s {name} is {size}"
                raise InputError(f"{given}; give height and width as multiples of {factor}")
            sizes[name] = int(size)
        return sizes["height"], sizes["width"]

    def _latents(self, request: Request, height: int, width: int, generator: TorchGenerator) -> FloatArray:
        """Noise of unit variance: what was given, else the first numbers of the generator."""
        family, manifest = self.bundle.family, self.bundle.manifest
        (sample,) = (spec for spec in manifest.graphs[family.denoiser].inputs if spec.name == "sample")
        sizes = {
            "batch": request.prompt_count * request.num_images_per_prompt,
            "height": height // family.vae_factor,
            "width": width // family.vae_factor,
        }
        shape = sample.spec().shape_at(sizes)
        if request.latents is None:
            return generator.randn(shape)
        if request.latents.shape != shape:
            raise InputError(f"latents have shape {request.latents.shape}, expected {shape}")
        return request.latents


def _control_pictures(request: Request) -> list[Bands]:
    if request.control_image is None:
        raise InputError("no control picture was given; give control_image (control_scale=0 switches it off)")
    pictures = read_pictures(request.control_image)
    if len(pictures) not in (1, request.prompt_count):
        raise InputError(
            f"{len(pictures)} control pictures were given for {request.prompt_count} prompts; give one, or"
            f" {request.prompt_count}"
        )
    return pictures


def _control_scale(request: Request) -> FloatArray:
    """One scale for every picture, (N,) float32."""
    scale, count = np.asarray(request.control_scale), request.prompt_count
    if scale.shape not in ((), (1,), (count,)):
        raise InputError(f"control_scale has shape {scale.shape} for {count} prompts; give one, or {count}")
    return np.repeat(np.broadcast_to(scale, count), request.num_images_per_prompt)
