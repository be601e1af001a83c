"""Make the picture and the clip of the README from bundles of the small model.

    python examples/shapes/pictures.py FP32 FP16 INT8 --output docs/images [--steps N]

Writes ``precisions.png``: in each row the outline, the images of the three bundles and how far float16's and
int8's are from float32's; ``steps.webp``: an image as it is denoised, step by step, beside its outline; and
``outline.png``, the outline of docs/index.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo import GUIDANCE, STEPS
from draw import SIZE, held_out, outline, prompt
from PIL import Image, ImageDraw

from controlnext.evaluation.report import difference_image, to_image
from controlnext.runtime import ImagePipeline

CHOSEN = (1, 4)
"""Drawings of the picture, by their numbers among the held-out ones."""
HEAD, GAP = 16, 4
TITLES = ("control", "float32", "float16", "int8", "float16 x 20", "int8 x 20")
HOLD, PAUSE = 1200, 120
"""Milliseconds of the clip's last frame and of the others."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs=3, metavar="BUNDLE")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    drawings = held_out(max(CHOSEN) + 1)
    calls = [_call(drawings[number], number, given.steps) for number in CHOSEN]
    Image.fromarray(outline(drawings[CHOSEN[0]])).save(given.output / "outline.png")
    images = []
    for bundle in given.bundles:
        with ImagePipeline.load(bundle) as pipe:
            images.append([_first(pipe(**call, output_type="np").images) for call in calls])
            if bundle == given.bundles[0]:
                _write_clip(pipe, calls[0], given.output / "steps.webp")
    rows = [
        [call["control_image"], *map(to_image, row), *(difference_image(row[0], one) for one in row[1:])]
        for call, row in zip(calls, zip(*images, strict=True), strict=True)
    ]
    _sheet(rows).save(given.output / "precisions.png", optimize=True)


def _call(drawing: Any, seed: int, steps: int) -> dict[str, Any]:
    return {
        "prompt": prompt(drawing),
        "control_image": Image.fromarray(outline(drawing)),
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "height": SIZE,
        "width": SIZE,
        "seed": seed,
    }


def _first(images: Any) -> np.ndarray:
    """Return the first image of an array (N, H, W, 3)."""
    return np.asarray(images)[0]


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return images in rows, with a title above each column."""
    step = SIZE + GAP
    sheet = Image.new("RGB", (step * len(TITLES) - GAP, HEAD + step * len(rows) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((column * step + SIZE // 2, HEAD // 2), title, "black", anchor="mm")
        for number, row in enumerate(rows):
            sheet.paste(row[column].convert("RGB"), (column * step, HEAD + number * step))
    return sheet


def _write_clip(pipe: ImagePipeline, call: dict[str, Any], path: Path) -> None:
    """Write what the latents of each step decode to, beside the outline, as an animated WebP."""
    frames = []
    for step in pipe.stream(**call):
        frame = Image.new("RGB", (2 * SIZE + GAP, SIZE), "white")
        frame.paste(call["control_image"].convert("RGB"), (0, 0))
        frame.paste(to_image(_first(pipe.decode(step.latents, output_type="np"))), (SIZE + GAP, 0))
        frames.append(frame)
    pauses = [PAUSE] * (len(frames) - 1) + [HOLD]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pauses, loop=0, quality=80)


if __name__ == "__main__":
    main()
