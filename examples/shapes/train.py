"""Train the small model from scratch: VAE, base (UNet and text encoders), then control on a frozen base.

A tiny VAE is distilled from the VAE.

    python examples/shapes/train.py --stage vae       # 0.3 hours
    python examples/shapes/train.py --stage decoder   # 0.1 hours
    python examples/shapes/train.py --stage base      # 0.5 hours
    python examples/shapes/train.py --stage control   # 0.3 hours
    python examples/shapes/train.py --stage tiny      # 0.3 hours

The times are of two CPU cores shared with other work, on which the shipped files were trained. Nothing is
downloaded. Each stage reads the previous stage's files from `model/`, next to this file, in float16.
`--steps`, `--batch`, `--drawings` and `--model` make a shorter trial of a stage, in another directory.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from data import Drawings, encode, training_drawings
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, StableDiffusionXLPipeline
from draw import SIZE
from fit import TrainingPlan, fit
from networks import (
    VARIANT,
    build_scheduler,
    build_text_encoders,
    build_tiny_vae,
    build_tokenizers,
    build_unet,
    build_vae,
    control_spec,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from controlnext.models.control_module import ControlModule
from controlnext.models.cross_normalization import Control, CrossNormalization, inject

MODEL = Path(__file__).parent / "model"
TIME_IDS = (SIZE, SIZE, 0, 0, SIZE, SIZE)
TRAINED_UNET = ("down_blocks.0.", "up_blocks.1.", "up_blocks.2.")


VAE_PLAN = TrainingPlan(steps=1250, batch=16, rate=2e-3, drawings=40_000, cool_down=0.3)
DECODER_PLAN = TrainingPlan(steps=450, batch=16, rate=1.5e-3, drawings=16_000, averaging=0.98, cool_down=0.9)
BASE_PLAN = TrainingPlan(steps=1900, batch=32, rate=1e-3, drawings=40_000, averaging=0.99)
CONTROL_PLAN = TrainingPlan(steps=1500, batch=16, rate=1e-3, drawings=16_000, averaging=0.99, cool_down=0.4)
TINY_PLAN = TrainingPlan(steps=5000, batch=8, rate=3e-3, drawings=4000, averaging=0.98, cool_down=0.95)
EMPTY_PROMPTS = 0.1
NOISE_OFFSET = 0.3
"""Offset noise, as for SDXL: without it the mean colour shows through the noise, and prompts are ignored."""
MAX_WEIGHT = 30.0
"""Upper limit of the loss weight 1 / alpha of a timestep. Colours show through all but the strongest noise,
so the prompt matters only there, where the unweighted error is small."""
KL_WEIGHT = 1e-4
LATENT_ERROR = 0.05
DRAWINGS_PER_PROMPT = 4
"""For the base stage: encoding a prompt costs about half as much as the UNet does for an image."""
NOISES_PER_DRAWING = 2
"""For the control stage: the control module costs three times as much as the frozen UNet."""


def train_vae(data: Drawings, plan: TrainingPlan, model: Path) -> None:
    """Train the VAE: squared and absolute error, and a small KL term towards a unit normal."""
    vae = build_vae().to(memory_format=torch.channels_last)
    batches = data.batches(plan.batch, plan.steps, seed=0)

    def loss() -> Tensor:
        images = data.images(next(batches))
        latents = vae.encode(images).latent_dist
        decoded = vae.decode(latents.sample()).sample
        kl = latents.kl().mean() / latents.mean[0].numel()
        return F.mse_loss(decoded, images) + 0.1 * F.l1_loss(decoded, images) + KL_WEIGHT * kl

    def save() -> None:
        sample = next(data.batches(min(256, len(data)), 1, seed=1))
        with torch.no_grad():
            spread = vae.encode(data.images(sample)).latent_dist.mean.std()
        vae.register_to_config(scaling_factor=round(1 / float(spread), 4))
        save_half(vae, model / "base" / "vae")

    fit(list(vae.parameters()), loss, plan, save)


def train_decoder(data: Drawings, plan: TrainingPlan, model: Path) -> None:
    """Train the VAE's decoder alone, on slightly noisy latents like sampled ones; the encoder is
    unchanged."""
    vae = AutoencoderKL.from_pretrained(model / "base" / "vae", torch_dtype=torch.float32)
    vae.to(memory_format=torch.channels_last)
    latents = encode(vae, data)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    batches = data.batches(plan.batch, plan.steps, seed=0)

    def loss() -> Tensor:
        indices = next(batches)
        sampled = latents[indices] + LATENT_ERROR * torch.randn_like(latents[indices])
        decoded, images = vae.decode(sampled / vae.config.scaling_factor).sample, data.images(indices)
        return F.mse_loss(decoded, images) + 0.1 * F.l1_loss(decoded, images)

    fit(trained, loss, plan, lambda: save_half(vae, model / "base" / "vae"))


def train_base(data: Drawings, plan: TrainingPlan, model: Path) -> None:
    """Train UNet and text encoders together, without control."""
    vae = AutoencoderKL.from_pretrained(model / "base" / "vae", torch_dtype=torch.float32)
    latents = encode(vae, data)
    tokenizers = build_tokenizers()
    encoders = build_text_encoders(tokenizers[0])
    unet = build_unet().to(memory_format=torch.channels_last)
    pipeline = StableDiffusionXLPipeline(
        vae, *encoders, *tokenizers, unet, build_scheduler(), add_watermarker=False
    )
    noising = Noising(pipeline)
    batches = data.batches(plan.batch, plan.steps, 0, DRAWINGS_PER_PROMPT)

    def loss() -> Tensor:
        indices = next(batches)
        prompts = encode_prompts(pipeline, data.prompts(indices[::DRAWINGS_PER_PROMPT]))
        embeds, pooled = (p.repeat_interleave(DRAWINGS_PER_PROMPT, dim=0) for p in prompts)
        return noising.loss(unet, latents[indices], embeds, pooled, noising.times(len(indices)))

    def save() -> None:
        save_half(pipeline, model / "base")
        for name, tokenizer in zip(("tokenizer", "tokenizer_2"), build_tokenizers(), strict=True):
            tokenizer.save_pretrained(model / "base" / name)  # the used ones have a padding setting

    fit([p for network in (unet, *encoders) for p in network.parameters()], loss, plan, save)


def train_control(data: Drawings, plan: TrainingPlan, model: Path) -> None:
    """Train the control module and some UNet tensors, as increments to the shipped float16 base."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(model / "base", torch_dtype=torch.float32)
    control = ControlModule(control_spec())
    control.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    normalization = CrossNormalization(VARIANT.injection)
    unet = pipeline.unet.to(memory_format=torch.channels_last)
    unet.requires_grad_(False)
    trained = {n: p.requires_grad_() for n, p in unet.named_parameters() if n.startswith(TRAINED_UNET)}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    latents = encode(pipeline.vae, data)
    rows, embeds, pooled = prompt_table(pipeline, data)
    noising = Noising(pipeline)
    batches = data.batches(plan.batch, plan.steps, seed=0)

    def loss() -> Tensor:
        indices = next(batches)
        times = noising.times(len(indices))
        feature = control(data.outlines(indices), times).repeat(NOISES_PER_DRAWING, 1, 1, 1)
        repeated, times = np.tile(indices, NOISES_PER_DRAWING), times.repeat(NOISES_PER_DRAWING)
        row = rows[repeated]
        with inject(unet, normalization, [Control(feature, torch.ones(()))]):
            return noising.loss(unet, latents[repeated], embeds[row], pooled[row], times)

    def save() -> None:
        increments = {name: parameter.detach() - start[name] for name, parameter in trained.items()}
        save_file(half(control.state_dict()), model / "controlnet.safetensors")
        save_file(half(increments), model / "unet.safetensors")

    fit([*control.parameters(), *trained.values()], loss, plan, save)


def train_tiny(data: Drawings, plan: TrainingPlan, model: Path) -> None:
    """Train a tiny VAE to give the VAE's images, of slightly noisy latents like sampled ones, and its
    latents."""
    vae = AutoencoderKL.from_pretrained(model / "base" / "vae", torch_dtype=torch.float32)
    vae.to(memory_format=torch.channels_last).requires_grad_(False)
    tiny = build_tiny_vae().to(memory_format=torch.channels_last)
    latents = encode(vae, data)
    batches = data.batches(plan.batch, plan.steps, seed=0)

    def loss() -> Tensor:
        indices = next(batches)
        sampled = latents[indices] + LATENT_ERROR * torch.randn_like(latents[indices])
        wanted = vae.decode(sampled / vae.config.scaling_factor).sample
        decoded, encoded = tiny.decode(sampled).sample, tiny.encode(data.images(indices)).latents
        # the absolute error keeps edges where they are
        distance = F.mse_loss(decoded, wanted) + 0.5 * F.l1_loss(decoded, wanted)
        return distance + 0.1 * F.mse_loss(encoded, latents[indices])

    fit(list(tiny.parameters()), loss, plan, lambda: save_half(tiny, model / "tiny_vae"))


class Noising:
    """The diffusion loss: predict the noise of latents noised to random timesteps."""

    def __init__(self, pipeline: StableDiffusionXLPipeline) -> None:
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.weights = (1 / self.scheduler.alphas_cumprod).clamp(max=MAX_WEIGHT) / MAX_WEIGHT

    def times(self, count: int) -> Tensor:
        """Return random timesteps, one from each of `count` equal parts of the range to reduce variance."""
        parts = (torch.randperm(count) + torch.rand(count)) / count
        return (parts * self.scheduler.config.num_train_timesteps).long()

    def loss(self, unet: nn.Module, latents: Tensor, embeds: Tensor, pooled: Tensor, times: Tensor) -> Tensor:
        """Return the squared error of the predicted noise; some prompts are zeroed, as empty ones are in
        use."""
        count = len(latents)
        kept = (torch.rand(count, 1) >= EMPTY_PROMPTS).float()
        noise = torch.randn_like(latents) + NOISE_OFFSET * torch.randn(*latents.shape[:2], 1, 1)
        noised = self.scheduler.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        extra = {"text_embeds": pooled * kept, "time_ids": torch.tensor([TIME_IDS] * count).float()}
        predicted = unet(noised, times, embeds * kept[..., None], added_cond_kwargs=extra).sample
        errors = (predicted - noise).square().mean(dim=(1, 2, 3))
        return (self.weights[times] * errors).mean()


def encode_prompts(pipeline: StableDiffusionXLPipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Return embeddings and pooled embedding as SDXL's pipeline computes them, with gradients."""
    hidden = []
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = encoder(ids, output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
    return torch.cat(hidden, dim=-1), output.text_embeds


@torch.no_grad()
def prompt_table(pipeline: StableDiffusionXLPipeline, data: Drawings) -> tuple[Tensor, Tensor, Tensor]:
    """Return each drawing's row, and the embeddings and pooled embeddings of all distinct prompts."""
    distinct, rows = np.unique(data.prompts(np.arange(len(data))), return_inverse=True)
    embeds, pooled = encode_prompts(pipeline, distinct.tolist())
    return torch.from_numpy(rows), embeds, pooled


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous float16 copies of tensors, for saving."""
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


def save_half(network: AutoencoderKL | AutoencoderTiny | StableDiffusionXLPipeline, directory: Path) -> None:
    """Save a float16 copy; the trained network is unchanged."""
    copy.deepcopy(network).to(dtype=torch.float16).save_pretrained(directory)
    for path in directory.rglob("config.json"):
        # diffusers saves the path that a network was loaded from, which is meaningless elsewhere
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


STAGES = {
    "vae": (train_vae, VAE_PLAN),
    "decoder": (train_decoder, DECODER_PLAN),
    "base": (train_base, BASE_PLAN),
    "control": (train_control, CONTROL_PLAN),
    "tiny": (train_tiny, TINY_PLAN),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description="Train one stage of the small model.")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--model", type=Path, default=MODEL, help="directory of the model")
    for name in ("steps", "batch", "drawings"):
        parser.add_argument(f"--{name}", type=int, help="override the stage's value")
    given = parser.parse_args(arguments)
    train, plan = STAGES[given.stage]
    changed = {name: getattr(given, name) for name in ("steps", "batch", "drawings") if getattr(given, name)}
    plan = replace(plan, **changed)
    torch.manual_seed(0)
    train(training_drawings(plan.drawings), plan, given.model)


if __name__ == "__main__":
    main()
