"""The stock diffusers pipeline of a checkpoint."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from controlnext.weights import Checkpoint

SCHEDULERS = {
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
}
"""diffusers' class behind each sampler."""


class StockPipeline:
    """A checkpoint as the stock diffusers pipeline, by default in float32 on the CPU.

    ``modules``: the networks and control modules by name; ``pipeline``: of ``cls``, or of the family's class.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        cls: Any = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        **parts: Any,
    ) -> None:
        family = checkpoint.family
        cls = cls or getattr(diffusers, family.pipeline_class)
        accepted = inspect.signature(cls).parameters
        self.family = family
        self.variant = checkpoint.variant
        self.device, self.dtype = device, dtype
        self.modules = {
            name: network.module(dtype).to(device) for name, network in checkpoint.networks.items()
        }
        self.controls = [self.modules[name] for name, n in checkpoint.networks.items() if n.spec is None]
        self.denoiser = self.modules[family.denoiser]
        self._config = checkpoint.scheduler
        self.pipeline = cls(
            **{name: self.modules.get(name) for name in family.networks},
            **_tokenizers(checkpoint, self.modules),
            scheduler=self.scheduler(family.default_sampler),
            **{key: value for key, value in checkpoint.options.items() if key in accepted},
            **family.pipeline_options,
            **parts,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def placed(self, tensor: Tensor) -> Tensor:
        """``tensor`` as the networks take it."""
        return tensor.to(self.device, self.dtype)

    def scheduler(self, sampler: str) -> Any:
        """diffusers' scheduler of that name with the checkpoint's configuration."""
        return getattr(diffusers, SCHEDULERS[sampler]).from_config(self._config)

    def set_steps(self, sampler: str | None, steps: int | None) -> tuple[int, int]:
        """Put a fresh scheduler in; returns how many steps to ask it for, and how many it takes."""
        self.pipeline.scheduler = self.scheduler(sampler or self.family.default_sampler)
        asked = steps or self.family.default_steps
        self.pipeline.scheduler.set_timesteps(asked)
        return asked, len(self.pipeline.scheduler.timesteps)


def _tokenizers(checkpoint: Checkpoint, modules: dict[str, nn.Module]) -> dict[str, Any]:
    named = {name: network.tokenizer for name, network in checkpoint.family.networks.items()}
    contents = {
        tokenizer: checkpoint.tokenizers.get(tokenizer) if name in modules else None
        for name, tokenizer in named.items()
        if tokenizer
    }
    return {name: None if text is None else _tokenizer(text) for name, text in contents.items()}


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


def control_tensor(pictures: Any, height: int, width: int) -> Tensor:
    """(N, 3, height, width) in [0, 1]. To RGB before resizing, as the published scripts do: resizing a
    palette's indices, or colours apart from their alpha, gives other pictures."""
    several = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    rgb = [p.convert("RGB") if isinstance(p, Image.Image) else p for p in several]
    processor = VaeImageProcessor(do_normalize=False)
    return processor.preprocess(rgb, height=height, width=width).to(torch.float32)


class LatentsKeeper:
    """A pipeline's ``callback_on_step_end`` that keeps the latents of the last step."""

    latents: Tensor

    def __call__(self, _pipeline: Any, _index: int, _timestep: Any, tensors: dict[str, Tensor]) -> Any:
        self.latents = tensors["latents"]
        return tensors


def per_control(value: Any, count: int, shared: bool) -> list[Any]:
    """One value for each of ``count`` controls; ``shared``: ``value`` is the same for all."""
    return [value] * count if shared or count == 1 else list(value)
