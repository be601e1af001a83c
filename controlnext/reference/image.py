"""The PyTorch reference of the image families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from controlnext.reference.cut_off import CutOff
from controlnext.reference.image_prompts import with_image_prompts
from controlnext.reference.injection import ControlInput, scale_rows, scale_schedule
from controlnext.reference.stock import StockPipeline, control_tensor, per_control


@dataclass(frozen=True)
class ReferenceOutput:
    """The result: ``latents`` (N, C, h, w) float32 before decoding; ``images`` (N, H, W, 3) float32 in [0,
    1]."""

    latents: np.ndarray
    images: np.ndarray


class ImageReference(StockPipeline):
    """The reference for images; it takes the arguments of :class:`controlnext.runtime.Request`."""

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
        **embeddings: np.ndarray | None,
    ) -> ReferenceOutput:
        asked, steps = self.set_steps(sampler, num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        guidance = self.family.default_guidance if guidance_scale is None else guidance_scale
        self.pipeline._guidance_scale = guidance
        guided = self.pipeline.do_classifier_free_guidance
        cut_off = CutOff(guidance_end if guided else 1.0, steps)
        span = (control_start, control_end, self.variant.off_scale)
        control_inputs = [
            ControlInput(module, image, cut_off.conditional(scale_schedule(rows, steps, *span)))
            for module, image, rows in self._controls(
                control_image, control_scale, (height, width), num_images_per_prompt, guided
            )
        ]
        vae = self.modules["vae"]
        (vae.enable_tiling if vae_tiling else vae.disable_tiling)()
        # not every stock pipeline takes image prompts
        prompts = {} if ip_adapter_image is None else {"ip_adapter_image": ip_adapter_image}
        with self._steered(control_inputs, cache_interval, ip_adapter_image, ip_adapter_scale):
            result = self.pipeline(
                prompt=prompt,
                negative_prompt=negative_prompt,
                **asked,
                guidance_scale=guidance,
                height=height,
                width=width,
                generator=torch.Generator("cpu").manual_seed(seed),
                num_images_per_prompt=num_images_per_prompt,
                latents=None if latents is None else torch.from_numpy(latents),
                output_type="np",
                **prompts,
                callback_on_step_end=cut_off,
                callback_on_step_end_tensor_inputs=cut_off.tensors(self.pipeline),
                **{k: None if v is None else self.placed(torch.from_numpy(v)) for k, v in embeddings.items()},
            )
        return ReferenceOutput(cut_off.latents.float().cpu().numpy(), result.images)

    @contextmanager
    def _steered(
        self,
        control_inputs: Sequence[ControlInput],
        interval: int,
        image: Any,
        scale: float | Sequence[float],
    ) -> Iterator[None]:
        """Add the controls, and the adapters of the checkpoint for an image prompt."""
        adapters = () if image is None else self.adapters
        with (
            with_image_prompts(self.pipeline, adapters, scale) if adapters else nullcontext(),
            self.controlled(control_inputs, interval),
        ):
            yield

    def _controls(
        self,
        control_image: Any,
        control_scale: float | Sequence[Any],
        size: tuple[int, int],
        images_per_prompt: int,
        guided: bool,
    ) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """Yield each control with its images and the :func:`scale_rows` of one step, repeated for all images
        of a prompt where they differ."""
        count = len(self.controls)
        images = per_control(control_image, count, shared=False)
        scales = per_control(control_scale, count, shared=isinstance(control_scale, (int, float)))
        for module, given, scale in zip(self.controls, images, scales, strict=True):
            image = self.placed(control_tensor(given, *size))
            if len(image) > 1:
                image = image.repeat_interleave(images_per_prompt, 0)
            rows = self.placed(scale_rows(scale, guided, self.variant.unconditional_scale))
            if rows.shape[1] > 1:
                rows = rows.repeat_interleave(images_per_prompt, 1)
            yield module, image, rows
