"""Distil the small model to few steps: a LoRA of its UNet for the sampler `lcm`, without guidance.

    python examples/shapes/distill.py   # 8 minutes on two CPU cores

The teacher is the model itself, with control and guidance, in 10 UniPC steps: it turns the noise of each
drawing into latents. The student runs as the sampler will, from the same noise, in 2, 4 or 8 steps without
guidance, and at every step its clean sample is drawn to the middle of the teacher's latents and the drawing's
own. It thus sees its own errors of the steps before. The LoRA has the layers of the published LCM-LoRAs. The
files of `model/` are read, and `model/lcm_lora.safetensors` is written in float16.

`--steps`, `--batch`, `--drawings` and `--output` make a shorter trial.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Drawings, encode, training_drawings
from demo import GUIDANCE
from draw import SIZE
from fit import TrainingPlan, fit
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch_model import MODEL, reference
from train import TIME_IDS, half, prompt_table

from controlnext.models.cross_normalization import Control, CrossNormalization, inject
from controlnext.reference import ImageReference

LORA = MODEL / "lcm_lora.safetensors"
PLAN = TrainingPlan(steps=400, batch=8, rate=1.5e-3, drawings=1024, averaging=0.98, cool_down=0.7)
SEED = 0
RANK = 16
LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
"""Ends of the names of the UNet's layers with a LoRA: those of diffusers' script for LCM-LoRA."""
TEACHER_STEPS, TEACHER_BATCH = 10, 32
RUNS = (2, 4, 4, 8)
"""Numbers of steps of the student's runs, one drawn at a time."""
TRUTH = 0.5
"""Share of the drawing's own latents in the wanted ones. Decoded, they overlap with the asked shape by 0.940
over the first 64 training drawings; the teacher's by 0.909."""
HUBER = 0.1
"""Error, in units of the latents, from which on the loss is linear."""


class Denoiser:
    """The UNet with the control of scale 1, as the exported graph computes it, for training drawings."""

    def __init__(self, model: ImageReference, data: Drawings) -> None:
        self.unet = model.pipeline.unet.to(memory_format=torch.channels_last)
        (self.control,) = model.controls
        self.control.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
        self.normalization = CrossNormalization(model.variant.injection)
        self.data = data
        self.rows, self.embeds, self.pooled = prompt_table(model.pipeline, data)

    def __call__(
        self, latents: Tensor, timestep: Tensor, indices: np.ndarray, guidance: float = 1.0
    ) -> Tensor:
        """Return the noise in ``latents`` (B, 4, h, w) of the drawings ``indices``; guided above 1, where the
        unconditional half has the control too and zeros for the empty prompt."""
        with torch.no_grad():
            feature = self.control(self.data.outlines(indices), timestep.expand(len(indices)))
        row, halves = self.rows[indices], 2 if guidance > 1 else 1
        texts = [self.embeds[row], self.pooled[row]]
        embeds, pooled = (torch.cat([torch.zeros_like(text), text][-halves:]) for text in texts)
        rows = latents.repeat(halves, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        extra = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS] * len(rows)).float()}
        controls = [Control(feature.repeat(halves, 1, 1, 1), torch.ones(()))]
        with inject(self.unet, self.normalization, controls):
            noise = self.unet(rows, timestep, embeds, added_cond_kwargs=extra).sample
        if halves == 1:
            return noise
        unconditional, conditional = noise.chunk(2)
        return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def teach(denoiser: Denoiser, scheduler: Any, noise: Tensor) -> Tensor:
    """Return the teacher's latents (N, 4, h, w) of all drawings from their ``noise``."""
    made = []
    for indices in np.array_split(np.arange(len(noise)), -(-len(noise) // TEACHER_BATCH)):
        scheduler.set_timesteps(TEACHER_STEPS)
        latents = noise[indices]
        for timestep in scheduler.timesteps:
            predicted = denoiser(latents, timestep, indices, GUIDANCE)
            latents = scheduler.step(predicted, timestep, latents).prev_sample
        made.append(latents)
    return torch.cat(made).contiguous()


def distil(
    denoiser: Denoiser, scheduler: Any, pairs: tuple[Tensor, Tensor], plan: TrainingPlan, output: Path
) -> None:
    """Train the LoRA on ``pairs`` of noise and wanted latents, and write it to ``output``.

    An error counts by the fourth root of the timestep's share of the signal, between an error of the clean
    sample (1) and one of the noise (the square root): the colours are found at the first step, the edge at
    the last ones.
    """
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS))
    denoiser.unet.add_adapter(config)
    batches, runs = denoiser.data.batches(plan.batch, plan.steps, SEED), np.random.default_rng(SEED)

    def loss() -> Tensor:
        indices, total = next(batches), torch.zeros(())
        latents, wanted = (tensor[indices] for tensor in pairs)
        scheduler.set_timesteps(int(runs.choice(RUNS)))
        for timestep in scheduler.timesteps:
            made = scheduler.step(denoiser(latents, timestep, indices), timestep, latents)
            error = torch.nn.functional.huber_loss(made.denoised, wanted, delta=HUBER)
            total = total + scheduler.alphas_cumprod[timestep] ** 0.25 * error
            latents = made.prev_sample.detach()
        return total / len(scheduler.timesteps)

    def save() -> None:
        layers = get_peft_model_state_dict(denoiser.unet)
        save_file(half({f"unet.{name}": tensor for name, tensor in layers.items()}), output)

    fit([p for p in denoiser.unet.parameters() if p.requires_grad], loss, plan, save)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the teacher's latents, then train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="directory of the model")
    parser.add_argument("--output", type=Path, default=LORA, help="the LoRA's file")
    for name in ("steps", "batch", "drawings"):
        parser.add_argument(f"--{name}", type=int, help="override the plan's value")
    given = parser.parse_args(arguments)
    changed = {name: getattr(given, name) for name in ("steps", "batch", "drawings") if getattr(given, name)}
    plan = replace(PLAN, **changed)
    torch.manual_seed(SEED)
    start = time.monotonic()
    model, data = reference(given.model), training_drawings(plan.drawings)
    denoiser = Denoiser(model, data)
    noise = torch.randn(plan.drawings, 4, SIZE // 8, SIZE // 8)
    taught = teach(denoiser, model.scheduler("unipc"), noise)
    print(f"the teacher's latents of {plan.drawings} drawings: {time.monotonic() - start:.0f} s", flush=True)
    wanted = torch.lerp(taught, encode(model.pipeline.vae, data), TRUTH)
    distil(denoiser, model.scheduler("lcm"), (noise, wanted), plan, given.output)
    print(f"{given.output}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
