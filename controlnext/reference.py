"""The PyTorch reference: the stock diffusers pipeline, its denoiser steered by forward hooks.

What "the same outputs as PyTorch" means everywhere in this project is defined here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from controlnext.injection import CrossNormalization, inject
from controlnext.registry import Injection
from controlnext.weights import Checkpoint

SCHEDULERS = {
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
"""diffusers' class behind each sampler."""


@dataclass(frozen=True)
class ReferenceOutput:
    """``latents`` (N, C, h, w) float32 before decoding; ``images`` (N, H, W, 3) float32 in [0, 1]."""

    latents: np.ndarray
    images: np.ndarray


@contextmanager
def controlled(
    denoiser: nn.Module,
    control: nn.Module,
    injection: Injection,
    image: Tensor,
    strengths: Sequence[Tensor],
) -> Iterator[None]:
    """While the context lasts, call number i of ``denoiser`` is steered with ``strengths[i]``.

    ``image`` (1 or N, 3, H, W) in [0, 1] is repeated to the rows of a guided batch, as the published
    pipelines do; each strength is (N,) or a scalar.
    """
    stock, normalization = denoiser.forward, CrossNormalization(injection)
    remaining = iter(strengths)

    def forward(sample: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = sample.shape[0]
        pictures = image.repeat(rows // image.shape[0], 1, 1, 1)
        feature = control(pictures, timestep.expand(rows))
        strength = next(remaining)
        strength = strength.repeat(rows // strength.numel()) if strength.ndim else strength
        with inject(denoiser, normalization, feature, strength):
            return stock(sample, timestep, *args, **kwargs)

    denoiser.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        denoiser.forward = stock  # type: ignore[method-assign]


class ReferencePipeline:
    """A checkpoint as the stock diffusers pipeline with its control, in float32 on the CPU.

    Called with the arguments of :class:`controlnext.runtime.Pipeline`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.family = checkpoint.family
        self.injection = checkpoint.variant.injection
        self.scheduler = checkpoint.scheduler
        self.modules = {name: network.module() for name, network in checkpoint.networks.items()}
        self.pipeline = _stock_pipeline(checkpoint, self.modules)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        control_image: Image.Image | np.ndarray | list[Image.Image],
        control_scale: float | Sequence[float] = 1.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int,
        width: int,
        seed: int = 0,
        sampler: str | None = None,
        num_images_per_prompt: int = 1,
        latents: np.ndarray | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        **embeddings: np.ndarray | None,
    ) -> ReferenceOutput:
        steps = num_inference_steps or self.family.default_steps
        self.pipeline.scheduler = self._scheduler(sampler or self.family.default_sampler)
        image = _control_tensor(control_image, height, width)
        if image.shape[0] > 1:
            image = image.repeat_interleave(num_images_per_prompt, 0)
        self.pipeline.scheduler.set_timesteps(steps)
        count = len(self.pipeline.scheduler.timesteps)
        strengths = _strengths(control_scale, num_images_per_prompt, count, control_start, control_end)
        seen: dict[str, Tensor] = {}

        def keep_latents(_pipeline: Any, _index: int, _timestep: Any, tensors: dict[str, Tensor]) -> Any:
            seen.update(tensors)
            return tensors

        denoiser, control = self.modules[self.family.denoiser], self.modules["control"]
        with controlled(denoiser, control, self.injection, image, strengths):
            result = self.pipeline(
                prompt=prompt,
                negative_prompt=negative_prompt,
                num_inference_steps=steps,
                guidance_scale=self.family.default_guidance if guidance_scale is None else guidance_scale,
                height=height,
                width=width,
                generator=torch.Generator("cpu").manual_seed(seed),
                num_images_per_prompt=num_images_per_prompt,
                latents=None if latents is None else torch.from_numpy(latents),
                output_type="np",
                callback_on_step_end=keep_latents,
                callback_on_step_end_tensor_inputs=["latents"],
                **{k: None if v is None else torch.from_numpy(v) for k, v in embeddings.items()},
            )
        return ReferenceOutput(seen["latents"].numpy(), result.images)

    def _scheduler(self, sampler: str) -> Any:
        return getattr(diffusers, SCHEDULERS[sampler]).from_config(self.scheduler)


def _stock_pipeline(checkpoint: Checkpoint, modules: dict[str, nn.Module]) -> Any:
    family = checkpoint.family
    parts: dict[str, Any] = {name: modules.get(name) for name in family.networks}
    for name, network in family.networks.items():
        if network.tokenizer:
            content = checkpoint.tokenizers.get(network.tokenizer) if parts[name] is not None else None
            parts[network.tokenizer] = None if content is None else _tokenizer(content)
    parts["scheduler"] = getattr(diffusers, SCHEDULERS[family.default_sampler])()
    pipeline = getattr(diffusers, family.pipeline_class)(
        **parts, **checkpoint.options, **family.pipeline_options
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tokenizer(content: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(content)
    padding, truncation = tokenizer.padding, tokenizer.truncation
    assert padding is not None
    assert truncation is not None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=padding["pad_token"],
        model_max_length=truncation["max_length"],
    )


def _control_tensor(image: Any, height: int, width: int) -> Tensor:
    """(N, 3, height, width) in [0, 1]. To RGB before resizing, as the published scripts do: resizing a
    palette's indices, or colours apart from their alpha, gives other pictures."""
    pictures = image if isinstance(image, list) else [image]
    rgb = [p.convert("RGB") if isinstance(p, Image.Image) else p for p in pictures]
    processor = VaeImageProcessor(do_normalize=False)
    return processor.preprocess(rgb, height=height, width=width).to(torch.float32)


def _strengths(
    scale: float | Sequence[float], images_per_prompt: int, steps: int, start: float, end: float
) -> list[Tensor]:
    """The scale of each step: zero outside [start, end] of the run, by the rule of diffusers' ControlNet
    pipelines (``control_guidance_start``, ``control_guidance_end``)."""
    value = torch.tensor(scale, dtype=torch.float32)
    if value.ndim:
        value = value.repeat_interleave(images_per_prompt)
    keep = [start <= i / steps and (i + 1) / steps <= end for i in range(steps)]
    return [value if kept else torch.zeros_like(value) for kept in keep]
