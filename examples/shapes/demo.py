"""Draw held-out outlines with the exported small model, without PyTorch.

    python examples/shapes/demo.py BUNDLE IMAGE [--count N] [--steps N]

Prints how well each shape covers its outline, writes outlines and images side by side, and says what to try
next.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from draw import SIZE, Drawing, held_out, outline, prompt
from PIL import Image
from score import overlap

from controlnext.bundle.files import new_file
from controlnext.cli.console import progress
from controlnext.runtime import ImagePipeline

# at the default guidance scale of 5 the small model's colours begin to mix
COUNT, STEPS, GUIDANCE = 4, 20, 3.0
CONTROL = "outline.png"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args(arguments)
    drawings = held_out(given.count)
    images = list(draw(given.bundle, drawings, given.steps))
    pairs = [(outline(drawing), image) for drawing, image in zip(drawings, images, strict=True)]
    _write(np.concatenate([np.concatenate(pair, axis=1) for pair in pairs]), given.image)
    _write(pairs[0][0], given.image.with_name(CONTROL))
    for drawing, image in zip(drawings, images, strict=True):
        covered = 100 * overlap(image / 255, drawing)
        print(f"{prompt(drawing)}: {covered:.0f} % of the shape is where it is asked for")
    print(f"{given.image}: each outline and the image of it")
    print(
        NEXT.format(bundle=given.bundle, control=given.image.with_name(CONTROL), directory=given.image.parent)
    )


NEXT = """
Three things to try next, after `source .venv/bin/activate`:
  controlnext run {bundle} --prompt "a yellow star on a blue background" --control-image {control} \\
      --guidance 3 --output {directory}/star.png
  controlnext serve {bundle}      # a page at http://127.0.0.1:8000
  controlnext verify {bundle} --report {directory}/verify.html      # beside PyTorch's images"""


def draw(bundle: Path, drawings: Sequence[Drawing], steps: int) -> Iterator[np.ndarray]:
    """Yield the image (height, width, 3), uint8, of each drawing."""
    with progress(quiet=False) as report, ImagePipeline.load(bundle) as pipeline:
        for seed, drawing in enumerate(drawings):
            report(prompt(drawing), seed / len(drawings))
            out = pipeline(
                prompt(drawing),
                control_image=Image.fromarray(outline(drawing)),
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                height=SIZE,
                width=SIZE,
                seed=seed,
            )
            yield np.asarray(out.images, np.uint8)[0]
        report("drawn", 1.0)


def _write(pixels: np.ndarray, path: Path) -> None:
    with new_file(path) as aside:
        Image.fromarray(pixels).save(aside)


if __name__ == "__main__":
    main()
