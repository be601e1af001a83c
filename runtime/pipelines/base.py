"""What image and video pipelines share: from a request to the arguments of the denoising loop."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from controlnext.engines import BoundEngine
from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.denoise import Step, control_schedule
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.random import TorchGenerator
from controlnext.runtime.request import CommonRequest
from controlnext.runtime.samplers import Sampler, make_sampler
from controlnext.runtime.sizes import Size, choose_size, warn_if_large
from controlnext.runtime.tiling import Tiles
from controlnext.types import Feed, FloatArray

Pictures = list[Image.Image] | list[list[Image.Image]] | FloatArray


class Task(ABC):
    """One way of using a bundle: what it takes, how that is sampled, what comes out."""

    request: ClassVar[type[CommonRequest]]
    output: ClassVar[type[Any]]
    """What a call returns, of the arranged pictures (None if they were not asked for) and the latents."""
    memory_savers: ClassVar[tuple[str, ...]]
    """Arguments of the pipeline with which a run takes less memory."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.family = bundle.family
        self.variant = self.family.variant(bundle.manifest.variant)
        self.inputs = {spec.name: spec.spec() for spec in bundle.manifest.graphs[self.family.denoiser].inputs}
        self._config = bundle.manifest.configs[self.family.denoiser]
        self._sizes: set[Size] = set()
        self._scheduler = json.loads(bundle.file("scheduler/scheduler_config.json").read_text())

    def steps(self, request: Any) -> Iterator[Step]:
        """The steps of a run; the request is checked before this returns."""
        # what cannot be decoded is refused before it is sampled
        self.tiles(request.vae_tiling)
        controls, control_size = self._read(request)
        size = choose_size(self.family, self._config, request, control_size)
        if size not in self._sizes:
            self._sizes.add(size)
            warn_if_large(self.family, self._config, size)
        guard = self.guard(*size)
        with guard.watch():
            return guard.each(self._start(request, controls, *size))

    @abstractmethod
    def _read(self, request: Any) -> tuple[list[Any], Size]:
        """What each control takes, and the size of the first one's (first) image."""

    @abstractmethod
    def _start(self, request: Any, controls: list[Any], height: int, width: int) -> Iterator[Step]:
        """:meth:`steps` of a request that can be decoded, at this size."""

    def guard(self, height: int, width: int) -> MemoryGuard:
        """For what runs at a size in pixels."""
        return MemoryGuard(height, width, self.memory_savers)

    @abstractmethod
    def arrange(self, pictures: Any) -> Pictures:
        """PIL images, or an array (N, H, W, 3), as a call returns them."""

    def denoiser(self, constants: Feed) -> BoundEngine:
        """The denoiser with the inputs in place that stay the same over a run, or most of it."""
        return self.bundle.engine(self.family.denoiser).bind(constants)

    @property
    def controls(self) -> list[str]:
        """What follows ``control_image`` and ``control_scale`` in the input names of each control."""
        return [
            name.removeprefix("control_image") for name in self.inputs if name.startswith("control_image")
        ]

    def per_control(self, name: str, value: Any) -> list[Any]:
        """One value for each control; with several controls ``value`` has to be a list of as many."""
        if len(self.controls) == 1:
            return [value]
        if not isinstance(value, (list, tuple)) or len(value) != len(self.controls):
            raise InputError(
                f"this bundle has {len(self.controls)} controls; give {name} as a list of as many",
                argument=name,
            )
        return list(value)

    def scales_per_control(self, scale: Any) -> list[Any]:
        """As :meth:`per_control`, but a single number serves all."""
        several = isinstance(scale, (list, tuple)) or np.ndim(scale) > 0
        return self.per_control("control_scale", scale) if several else [scale] * len(self.controls)

    def schedules(
        self, scales: Sequence[FloatArray], request: CommonRequest, steps: int, guided: bool
    ) -> dict[int, dict[str, FloatArray]]:
        """The control scale inputs by the step from which on they hold.

        ``scales``: of each control, a row for every result.
        """
        factor = np.float32(self.variant.unconditional_scale)
        span, off = (request.control_start, request.control_end), self.variant.off_scale
        schedules = [
            control_schedule(
                np.concatenate([factor * scale, scale] if guided else [scale]), steps, *span, off
            )
            for scale in scales
        ]
        names = [f"control_scale{suffix}" for suffix in self.controls]
        rows = list(zip(*schedules, strict=True))
        return {
            index: dict(zip(names, row, strict=True))
            for index, row in enumerate(rows)
            if index == 0 or any(new is not old for new, old in zip(row, rows[index - 1], strict=True))
        }

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
