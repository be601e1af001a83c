"""Sample the shipped model on the held-out drawings and score it: overlap and colours per control scale.

python examples/shapes/evaluate.py --scales 0 1 --sheet sheet.png     # PyTorch
python examples/shapes/evaluate.py --bundle build/shapes-fp16         # the engine
python examples/shapes/evaluate.py --scales 1 --cache-intervals 1 2 3 # the step cache
python examples/shapes/evaluate.py --bundle build/shapes-fp16 --previews   # its previews too
python examples/shapes/evaluate.py --lora examples/shapes/model/lcm_lora.safetensors
    --scales 1 --sampler lcm --steps 4 --guidance 1     # the LoRA for few steps, in one line
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import draw
import numpy as np
from demo import GUIDANCE
from PIL import Image
from score import colours_right, overlap
from torch_model import reference

from controlnext.evaluation.metrics import psnr
from controlnext.runtime import Pipeline
from controlnext.runtime.random import TorchGenerator

BATCH = 16


def sample(
    pipeline: Any,
    drawings: list[draw.Drawing],
    seen: Callable[[np.ndarray], object] = lambda _latents: None,
    **options: Any,
) -> np.ndarray:
    """Sample an image per drawing; returns (N, H, W, 3) in [0, 1].

    ``pipeline`` is the runtime's or the reference: both have the same arguments. ``seen`` gets the latents.
    """
    made = []
    for call in calls(drawings):
        output = pipeline(**call, **options)
        made.append(np.asarray(output.images))
        seen(output.latents)
    return np.concatenate(made)


def calls(drawings: list[draw.Drawing]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of calls that sample an image per drawing, with the seeds 0, 1, 2..."""
    shape = (1, 4, draw.SIZE // 8, draw.SIZE // 8)
    noise = np.concatenate([TorchGenerator(seed).randn(shape) for seed in range(len(drawings))])
    for start in range(0, len(drawings), BATCH):
        part = drawings[start : start + BATCH]
        yield {
            "prompt": [draw.prompt(drawing) for drawing in part],
            "control_image": [Image.fromarray(draw.outline(drawing)) for drawing in part],
            "latents": noise[start : start + BATCH],
            "height": draw.SIZE,
            "width": draw.SIZE,
        }


def scores(images: np.ndarray, drawings: list[draw.Drawing]) -> tuple[float, float]:
    """Return the mean overlap with the drawings' shapes, and the share of images with both colours right."""
    pairs = list(zip(images, drawings, strict=True))
    covered = [overlap(*pair) for pair in pairs]
    return float(np.mean(covered)), float(np.mean([colours_right(*pair) for pair in pairs]))


def _told(images: np.ndarray, drawings: list[draw.Drawing]) -> str:
    covered, colours = scores(images, drawings)
    return f"IoU {covered:.3f}, colours right {colours:.1%}"


def sheet(drawings: list[draw.Drawing], images: dict[float, np.ndarray], columns: int = 16) -> Image.Image:
    """Return rows of outlines, each followed by rows of the images of each scale."""
    outlines = np.stack([draw.outline(drawing) for drawing in drawings])
    rows = [outlines, *((p * 255).round().astype(np.uint8) for p in images.values())]
    strips = [
        np.concatenate(list(row[start : start + columns]), axis=1)
        for start in range(0, len(drawings), columns)
        for row in rows
    ]
    return Image.fromarray(np.concatenate(strips))


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score the shipped model on the held-out drawings.")
    parser.add_argument("--bundle", type=Path, help="run the engine of this bundle instead of PyTorch")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5])
    parser.add_argument("--cache-intervals", type=int, nargs="+", default=[1])
    parser.add_argument("--lora", nargs="+", default=[], help="LoRAs for PyTorch; a bundle has its own")
    parser.add_argument("--sampler", help="default: unipc")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--guidance-end", type=float, default=1.0)
    parser.add_argument("--previews", action="store_true", help="score the bundle's previews of them too")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--save", type=Path, help="keep the last images, as an .npy file")
    parser.add_argument("--against", type=Path, help="print the PSNR to the images that --save kept here")
    options = parser.parse_args(arguments)
    if options.previews and not options.bundle:
        parser.error("--previews needs --bundle")
    if options.lora and options.bundle:
        parser.error("--lora is for PyTorch: export the bundle with it")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line per scale and cache interval; the PSNR is that to the first interval's images."""
    options = _asked(arguments)
    drawings = draw.held_out(options.count)
    images: dict[float, np.ndarray] = {}
    pipeline: Any = Pipeline.load(options.bundle) if options.bundle else reference(lora=options.lora)
    asked = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    asked |= {"guidance_end": options.guidance_end, "sampler": options.sampler}
    if options.bundle:
        asked["output_type"] = "np"
    for scale in options.scales:
        for interval in options.cache_intervals:
            latents: list[np.ndarray] = []
            asked |= {"control_scale": scale, "cache_interval": interval}
            made = sample(pipeline, drawings, latents.append, **asked)
            told = _told(made, drawings)
            if scale in images:
                told += f", cache interval {interval}: PSNR {psnr(images[scale], made):.1f} dB"
            if options.against:
                other = np.load(options.against, allow_pickle=False)
                told += f", PSNR {psnr(other, made):.1f} dB to {options.against.name}"
            print(f"scale {scale}: {told}", flush=True)
            if options.previews:
                previews = np.concatenate([pipeline.preview(some, "np") for some in latents])
                print(f"scale {scale}, previews: {_told(previews, drawings)}", flush=True)
            images.setdefault(scale, made)
    if options.save:
        np.save(options.save, made)
    if options.sheet:
        sheet(drawings, images).save(options.sheet)


if __name__ == "__main__":
    main()
