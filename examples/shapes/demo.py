"""Run the exported small model on outlines that it was not trained on, beside PyTorch.

    python examples/shapes/demo.py BUNDLE PICTURE

Prints how near the two pictures are and how well the drawn shape covers the asked one, and writes a strip for
each outline: outline, PyTorch, engine, difference.
"""

import sys
from pathlib import Path

import numpy as np
from draw import SIZE, held_out, outline, prompt
from PIL import Image
from score import overlap

from controlnext.commands.parity import psnr
from controlnext.commands.report import difference_picture, to_picture
from controlnext.files import new_file
from controlnext.reference import ImageReference
from controlnext.registry import get_family
from controlnext.runtime import Pipeline
from controlnext.weights import load_checkpoint

MODEL = Path(__file__).parent / "model"
COUNT, STEPS, GUIDANCE = 4, 20, 3.0
"""At the usual guidance of 5 this small model's colours begin to mix."""


def reference() -> ImageReference:
    """The small model in PyTorch, from the files that the export reads."""
    checkpoint = load_checkpoint(
        get_family("sdxl"),
        base=MODEL / "base",
        control=MODEL / "controlnet.safetensors",
        unet_weights=MODEL / "unet.safetensors",
        unet_increments=True,
    )
    return ImageReference.of(checkpoint)


def main(bundle: Path, output: Path) -> None:
    """Compare the bundle with PyTorch and write the strips to ``output``."""
    stock = reference()
    rows = []
    with Pipeline.load(bundle) as pipeline:
        for seed, drawing in enumerate(held_out(COUNT)):
            control = Image.fromarray(outline(drawing))
            arguments = {
                "prompt": prompt(drawing),
                "control_image": control,
                "num_inference_steps": STEPS,
                "guidance_scale": GUIDANCE,
                "height": SIZE,
                "width": SIZE,
                "seed": seed,
            }
            pytorch = stock(**arguments).images[0]
            engine = pipeline(**arguments, output_type="np").images[0]
            covered = overlap(engine, drawing)
            print(f"{prompt(drawing)}: PSNR {psnr(pytorch, engine):.0f} dB, shape covered {covered:.2f}")
            pictures = [control, to_picture(pytorch), to_picture(engine), difference_picture(pytorch, engine)]
            rows.append(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    with new_file(output) as aside:
        Image.fromarray(np.concatenate(rows)).save(aside)
    print(f"{output}: outline, PyTorch, engine, difference (20 times as bright)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
