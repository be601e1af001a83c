"""Run the exported small model on held-out outlines and compare it with PyTorch.

    python examples/shapes/demo.py BUNDLE IMAGE [--count N] [--steps N]

Prints the PSNR of the two images and the overlap of the shape with the outline's, and writes a strip for each
outline: outline, PyTorch, engine, difference.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from draw import SIZE, held_out, outline, prompt
from PIL import Image
from score import overlap

from controlnext.bundle.files import new_file
from controlnext.evaluation.metrics import psnr
from controlnext.evaluation.report import difference_image, to_image
from controlnext.families import get_family
from controlnext.reference import ImageReference
from controlnext.runtime import Pipeline
from controlnext.weights import Checkpoint, load_checkpoint

MODEL = Path(__file__).parent / "model"
# at the default guidance scale of 5 the small model's colours begin to mix
COUNT, STEPS, GUIDANCE = 4, 20, 3.0


def checkpoint(model: Path = MODEL, lora: Sequence[str] = ()) -> Checkpoint:
    """Return the small model from the files that the export reads, with LoRAs ``PATH[:SCALE]``."""
    return load_checkpoint(
        get_family("sdxl"),
        base=model / "base",
        control=model / "controlnet.safetensors",
        unet_weights=model / "unet.safetensors",
        unet_increments=True,
        lora=lora,
    )


def reference(model: Path = MODEL, lora: Sequence[str] = ()) -> ImageReference:
    """Load the small model in PyTorch; the arguments are those of :func:`checkpoint`."""
    return ImageReference.of(checkpoint(model, lora))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args(arguments)
    compare(given.bundle, given.image, given.count, given.steps)


def compare(bundle: Path, output: Path, count: int = COUNT, steps: int = STEPS) -> None:
    """Compare ``count`` images of the bundle with PyTorch's and write the strips to ``output``."""
    stock = reference()
    rows = []
    with Pipeline.load(bundle) as pipeline:
        for seed, drawing in enumerate(held_out(count)):
            control = Image.fromarray(outline(drawing))
            arguments: dict[str, Any] = {
                "prompt": prompt(drawing),
                "control_image": control,
                "num_inference_steps": steps,
                "guidance_scale": GUIDANCE,
                "height": SIZE,
                "width": SIZE,
                "seed": seed,
            }
            pytorch = stock(**arguments).images[0]
            engine = pipeline(**arguments, output_type="np").images[0]
            covered = overlap(engine, drawing)
            print(f"{prompt(drawing)}: PSNR {psnr(pytorch, engine):.0f} dB, shape covered {covered:.2f}")
            images = [control, to_image(pytorch), to_image(engine), difference_image(pytorch, engine)]
            rows.append(np.concatenate([np.asarray(image) for image in images], axis=1))
    with new_file(output) as aside:
        Image.fromarray(np.concatenate(rows)).save(aside)
    print(f"{output}: outline, PyTorch, engine, difference (20 times as bright)")


if __name__ == "__main__":
    main()
