"""Sample the shipped model on the held-out drawings and score it: overlap and colours per control scale.

python examples/shapes/evaluate.py --scales 0 1 --sheet sheet.png
"""

import argparse
from pathlib import Path

import draw
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UniPCMultistepScheduler
from networks import VARIANT, control_spec
from PIL import Image
from safetensors.torch import load_file
from score import colours_right, overlap
from torch import Tensor
from train import MODEL, TIME_IDS, encode_prompts

from controlnext.control import ControlModule
from controlnext.injection import CrossNormalization, inject

GUIDANCE = 3.0


class Sampler:
    """The shipped files in float32, sampled in batches with UniPC."""

    def __init__(self, folder: Path = MODEL) -> None:
        self.pipeline = StableDiffusionXLPipeline.from_pretrained(folder / "base", torch_dtype=torch.float32)
        self.unet = self.pipeline.unet
        weights = self.unet.state_dict()
        for name, increment in load_file(folder / "unet.safetensors").items():
            weights[name] += increment.float()
        self.control = ControlModule(control_spec())
        self.control.load_state_dict(load_file(folder / "controlnet.safetensors"))
        self.normalization = CrossNormalization(VARIANT.injection)

    @torch.no_grad()
    def pictures(self, drawings: list[draw.Drawing], scale: float, steps: int, guidance: float) -> np.ndarray:
        """One picture per drawing, from noise of seeds 0, 1, 2...; (N, H, W, 3) in [0, 1]."""
        scheduler = UniPCMultistepScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        embeds, pooled = encode_prompts(self.pipeline, [draw.prompt(drawing) for drawing in drawings])
        conditions = torch.cat([embeds * 0, embeds]), torch.cat([pooled * 0, pooled])
        stacked = np.stack([draw.outline(drawing) for drawing in drawings])
        outlines = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
        shape = (1, 4, draw.SIZE // 8, draw.SIZE // 8)
        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(drawings))]
        latents = torch.cat([torch.randn(shape, generator=seed) for seed in seeds])
        latents = latents * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            inputs = scheduler.scale_model_input(torch.cat([latents, latents]), time)
            plain, prompted = self._noise(inputs, time, conditions, outlines, scale).chunk(2)
            noise = plain + guidance * (prompted - plain)
            latents = scheduler.step(noise, time, latents).prev_sample
        decoded = self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample
        return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    def _noise(
        self, inputs: Tensor, time: Tensor, conditions: tuple[Tensor, Tensor], outlines: Tensor, scale: float
    ) -> Tensor:
        feature = self.control(outlines, time.expand(len(outlines))).repeat(2, 1, 1, 1)
        extra = {"text_embeds": conditions[1], "time_ids": torch.tensor([TIME_IDS] * len(inputs)).float()}
        with inject(self.unet, self.normalization, feature, torch.tensor(scale)):
            return self.unet(inputs, time, conditions[0], added_cond_kwargs=extra).sample


def sheet(drawings: list[draw.Drawing], pictures: dict[float, np.ndarray], columns: int = 16) -> Image.Image:
    """Rows of outlines, each with the pictures per scale below it."""
    outlines = np.stack([draw.outline(drawing) for drawing in drawings])
    rows = [outlines, *((p * 255).round().astype(np.uint8) for p in pictures.values())]
    strips = [
        np.concatenate(list(row[start : start + columns]), axis=1)
        for start in range(0, len(drawings), columns)
        for row in rows
    ]
    return Image.fromarray(np.concatenate(strips))


def main() -> None:
    """Print one line per scale."""
    parser = argparse.ArgumentParser(description="Score the shipped model on the held-out drawings.")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    drawings, sampler, pictures = draw.held_out(options.count), Sampler(), {}
    for scale in options.scales:
        pictures[scale] = sampler.pictures(drawings, scale, options.steps, options.guidance)
        pairs = list(zip(pictures[scale], drawings, strict=True))
        mean_overlap = np.mean([overlap(*pair) for pair in pairs])
        colours = np.mean([colours_right(*pair) for pair in pairs])
        print(f"scale {scale}: IoU {mean_overlap:.3f}, colours right {colours:.1%}", flush=True)
    if options.sheet:
        sheet(drawings, pictures).save(options.sheet)


if __name__ == "__main__":
    main()
