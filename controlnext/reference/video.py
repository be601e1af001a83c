"""The PyTorch reference of the video families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from controlnext.families import Family
from controlnext.image_input import ImageReader
from controlnext.reference.cut_off import CutOff, conditional_alone
from controlnext.reference.injection import ControlInput, scale_rows, scale_schedule
from controlnext.reference.stock import LatentsKeeper, StockPipeline, control_tensor, per_control
from controlnext.weights import Checkpoint
from controlnext.windows import clip_windows


@dataclass(frozen=True)
class VideoReferenceOutput:
    """The result: ``latents`` (1, F, C, h, w) float32 before decoding; ``frames`` (1, F, H, W, 3) in [0,
    1]."""

    latents: np.ndarray
    frames: np.ndarray


class VideoReference(StockPipeline):
    """The reference for clips; it takes the arguments of :class:`controlnext.runtime.VideoRequest`."""

    @staticmethod
    def stock_class(family: Family) -> Any:
        """Return the pipeline's class, with guidance decided as in the published pipeline."""
        return _told_whether_guided(getattr(diffusers, family.pipeline_class))

    @staticmethod
    def parts(checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the feature extractor with the checkpoint's normalization."""
        normalization = {key: checkpoint.options[key] for key in ("image_mean", "image_std")}
        return {"feature_extractor": CLIPImageProcessor(**normalization)}

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        control_images: Sequence[Any],
        *,
        height: int,
        width: int,
        control_scale: float | Sequence[float] = 1.0,
        num_frames: int | None = None,
        frames_per_batch: int = 14,
        overlap: int = 4,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float | None = None,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        latents: np.ndarray | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        guidance_end: float = 1.0,
        cache_interval: int = 1,
    ) -> VideoReferenceOutput:
        asked, steps = self.set_steps(sampler, num_inference_steps, sigmas=sigmas)
        highest = self.family.default_guidance if max_guidance_scale is None else max_guidance_scale
        given = self._given(control_images, control_scale)
        frames = num_frames or min(len(clip) for clip, _ in given)
        self.pipeline.guided = highest >= 1
        cut_off = CutOff(guidance_end if self.pipeline.guided else 1.0, steps)
        span = (control_start, control_end)
        control_inputs = [
            self._control_input(module, clip[:frames], scale, (height, width), span, cut_off)
            for module, (clip, scale) in zip(self.controls, given, strict=True)
        ]
        windows, fixed = clip_windows(frames, frames_per_batch, overlap), self._fixed(height, width)
        keeper = LatentsKeeper()
        with (
            self.controlled(control_inputs, cache_interval, windows, **fixed),
            conditional_alone(self.denoiser, cut_off),
        ):
            result = self.pipeline(
                ImageReader("image").read_rgb(image),
                height=height,
                width=width,
                num_frames=frames,
                **asked,
                min_guidance_scale=min_guidance_scale,
                max_guidance_scale=highest,
                noise_aug_strength=noise_aug_strength,
                decode_chunk_size=decode_chunk_size or frames_per_batch,
                generator=torch.Generator("cpu").manual_seed(seed),
                latents=None if latents is None else torch.from_numpy(latents),
                output_type="np",
                callback_on_step_end=keeper,
                callback_on_step_end_tensor_inputs=["latents"],
            )
        return VideoReferenceOutput(keeper.latents.float().cpu().numpy(), np.asarray(result.frames))

    def _given(
        self, control_images: Sequence[Any], control_scale: float | Sequence[float]
    ) -> list[tuple[Any, float]]:
        """Return the clip and the scale of each control."""
        count, shared = len(self.controls), isinstance(control_scale, (int, float))
        clips = per_control(control_images, count, shared=False)
        return list(zip(clips, per_control(control_scale, count, shared=shared), strict=True))

    def _fixed(self, height: int, width: int) -> dict[str, Tensor]:
        """Return the denoiser's inputs that depend on the size alone, with one row."""
        return {
            name: self.placed(torch.tensor([make(height, width)]))
            for name, make in self.family.conditioning.items()
        }

    def _control_input(
        self,
        module: nn.Module,
        clip: Sequence[Any],
        scale: float,
        size: tuple[int, int],
        span: tuple[float, float],
        cut_off: CutOff,
    ) -> ControlInput:
        images = self.placed(control_tensor(list(clip), *size, clip=True)[None])
        rows = self.placed(scale_rows(scale, self.pipeline.guided, self.variant.unconditional_scale))
        schedule = scale_schedule(rows, cut_off.steps, *span, self.variant.off_scale)
        return ControlInput(module, images, cut_off.conditional(schedule))


def _told_whether_guided(stock: Any) -> Any:
    """Return the stock pipeline's class with ``guided`` in place of its own decision: guided if the requested
    maximum is at least 1, as published.

    The stock class is guided above 1, and its loop decides again, by the guidance of the frames; it fails if
    the two decisions differ.
    """

    class Told(stock):
        guided: bool

        @property
        def do_classifier_free_guidance(self) -> bool:
            return self.guided

    Told.__name__ = stock.__name__
    return Told
