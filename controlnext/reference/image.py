"""The PyTorch reference of the image families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from controlnext.reference.cut_off import CutOff, conditional_alone
from controlnext.reference.image_prompts import with_image_prompts
from controlnext.reference.image_start import (
    START_ARGUMENTS,
    Asked,
    Size,
    Start,
    StartingPipeline,
    enlarged,
    enlarged_images,
)
from controlnext.reference.injection import ControlInput, scale_rows, scale_schedule
from controlnext.reference.stock import LatentsKeeper, control_tensor, per_control


@dataclass(frozen=True)
class ReferenceOutput:
    """The result: ``latents`` (N, C, h, w) float32 before decoding; ``images`` (N, H, W, 3) float32 in [0,
    1]."""

    latents: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class _Call:
    """The arguments that all runs of a call share, and the generator, which goes on from one to the next.

    ``texts``: the pipelines' arguments for prompts, image prompts and embeddings.
    """

    texts: dict[str, Any]
    control_image: Any
    control_scale: float | Sequence[Any]
    steps: int | None
    given_steps: dict[str, Any]
    guidance: float
    sampler: str | None
    images_per_prompt: int
    span: tuple[float, float]
    guidance_end: float
    cache_interval: int
    generator: torch.Generator = field(repr=False)


class ImageReference(StartingPipeline):
    """The reference for images; it takes the arguments of :class:`controlnext.runtime.Request`.

    ``others``: embeddings, and those of a start from an image (:class:`Asked`).
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        control_image: Any,
        control_scale: float | Sequence[Any] = 1.0,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        height: int,
        width: int,
        seed: int = 0,
        sampler: str | None = None,
        num_images_per_prompt: int = 1,
        latents: np.ndarray | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        guidance_end: float = 1.0,
        vae_tiling: bool = False,
        cache_interval: int = 1,
        ip_adapter_image: Any = None,
        ip_adapter_scale: float | Sequence[float] = 1.0,
        **others: Any,
    ) -> ReferenceOutput:
        asked = Asked(**{name: others.pop(name) for name in START_ARGUMENTS if name in others})
        placed = {k: None if v is None else self.placed(torch.from_numpy(v)) for k, v in others.items()}
        call = _Call(
            {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                "clip_skip": self.clip_skip or None,
                # not every stock pipeline takes image prompts
                **({} if ip_adapter_image is None else {"ip_adapter_image": ip_adapter_image}),
                **placed,
            },
            control_image,
            control_scale,
            num_inference_steps,
            {"timesteps": timesteps, "sigmas": sigmas},
            self.family.default_guidance if guidance_scale is None else guidance_scale,
            sampler,
            num_images_per_prompt,
            (control_start, control_end),
            guidance_end,
            cache_interval,
            torch.Generator("cpu").manual_seed(seed),
        )
        vae: Any = self.modules["vae"]
        (vae.enable_tiling if vae_tiling else vae.disable_tiling)()
        adapters = () if ip_adapter_image is None else self.adapters
        with with_image_prompts(self.pipeline, adapters, ip_adapter_scale):
            return self._runs(call, asked, (height, width), latents)

    def _runs(self, call: _Call, asked: Asked, size: Size, latents: np.ndarray | None) -> ReferenceOutput:
        """Make the runs of a call, and return the result of the last."""
        larger = self._larger(size, asked.upscale)
        by_latents, strength = asked.upscale_mode == "latent", asked.strength
        if asked.image is None:
            result = self._of_noise(call, size, latents)
            if larger is None:
                return result
            first = torch.from_numpy(result.latents)
            begun = enlarged(first, larger) if by_latents else enlarged_images(result.images, larger)
            return self._from(call, Start(begun, strength), larger)
        start = Start.of(asked.image, strength, asked.mask_image, asked.padding_mask_crop)
        if larger is not None and by_latents:
            latent = self.encode(start, size, call.generator)
            return self._from(call, Start(enlarged(latent, larger), strength), larger)
        result = self._from(call, start, larger or size)
        if not asked.overlay and asked.padding_mask_crop is None:
            return result
        return ReferenceOutput(result.latents, start.overlaid(result.images, size))

    def _larger(self, size: Size, factor: float | None) -> Size | None:
        if factor is None:
            return None
        multiple = self.family.size_multiple
        height, width = (int(side * factor) // multiple * multiple for side in size)
        return height, width

    def _of_noise(self, call: _Call, size: Size, latents: np.ndarray | None) -> ReferenceOutput:
        """Run the text-to-image pipeline."""
        if self.family.image_start is not None and self.inpaints:
            return self._from(call, self.white(size), size)
        asked, steps = self.set_steps(call.sampler, call.steps, **call.given_steps)
        self.pipeline._guidance_scale = call.guidance
        guided = self.pipeline.do_classifier_free_guidance
        cut_off = CutOff(call.guidance_end if guided else 1.0, steps)
        controls = self._controls(call, size, guided, cut_off)
        with self.controlled(controls, call.cache_interval):
            result = self.pipeline(
                **call.texts,
                **asked,
                guidance_scale=call.guidance,
                height=size[0],
                width=size[1],
                generator=call.generator,
                num_images_per_prompt=call.images_per_prompt,
                latents=None if latents is None else torch.from_numpy(latents),
                output_type="np",
                callback_on_step_end=cut_off,
                callback_on_step_end_tensor_inputs=cut_off.tensors(self.pipeline),
            )
        return ReferenceOutput(cut_off.latents.float().cpu().numpy(), result.images)

    def _from(self, call: _Call, start: Start, size: Size) -> ReferenceOutput:
        """Run the pipeline for what a run starts from."""
        pipeline = self.starting(start)
        asked, _ = self.set_steps(call.sampler, call.steps, pipeline, **call.given_steps)
        pipeline._guidance_scale = call.guidance
        guided = pipeline.do_classifier_free_guidance
        cut_off = CutOff(call.guidance_end if guided else 1.0, self.shortened(start, asked))
        controls = self._controls(call, size, guided, cut_off, start)
        keeper = LatentsKeeper()
        with ExitStack() as stack:
            stack.enter_context(self.controlled(controls, call.cache_interval))
            if guided:
                # diffusers' callback does not reach all of these pipelines' tensors
                stack.enter_context(conditional_alone(self.denoiser, cut_off))
            pipeline(
                **call.texts,
                **asked,
                **self.start_arguments(start, size),
                guidance_scale=call.guidance,
                generator=call.generator,
                num_images_per_prompt=call.images_per_prompt,
                callback_on_step_end=keeper,
                callback_on_step_end_tensor_inputs=["latents"],
            )
        return ReferenceOutput(keeper.latents.float().cpu().numpy(), self.decode(keeper.latents))

    def _controls(
        self, call: _Call, size: Size, guided: bool, cut_off: CutOff, start: Start | None = None
    ) -> list[ControlInput]:
        span = (*call.span, self.variant.off_scale)
        return [
            ControlInput(module, image, cut_off.conditional(scale_schedule(rows, cut_off.steps, *span)))
            for module, image, rows in self._each_control(call, size, guided, start)
        ]

    def _each_control(
        self, call: _Call, size: Size, guided: bool, start: Start | None
    ) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """Yield each control with its images and the :func:`scale_rows` of one step, repeated for all images
        of a prompt where they differ."""
        count = len(self.controls)
        images = per_control(call.control_image, count, shared=False)
        shared = isinstance(call.control_scale, (int, float))
        scales = per_control(call.control_scale, count, shared=shared)
        for module, given, scale in zip(self.controls, images, scales, strict=True):
            fitted = given if start is None else start.control(given, size)
            image = self.placed(control_tensor(fitted, *size))
            if len(image) > 1:
                image = image.repeat_interleave(call.images_per_prompt, 0)
            rows = self.placed(scale_rows(scale, guided, self.variant.unconditional_scale))
            if rows.shape[1] > 1:
                rows = rows.repeat_interleave(call.images_per_prompt, 1)
            yield module, image, rows
