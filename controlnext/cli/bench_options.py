"""Options of ``controlnext bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.bench.choices import DEFAULT_MEASURES, IMAGES, MEASURES
from controlnext.bench.settings import BATCHES, FRAMES, IMAGE_STEPS, SIZES
from controlnext.cli.options import local_path
from controlnext.families import FAMILIES
from controlnext.types import Precision

PRECISIONS = (Precision.FP32, Precision.INT8)
"""Default precisions of ``--model``."""

Numbers = list[int] | None


def _check_positive(numbers: Numbers) -> Numbers:
    for number in numbers or ():
        if number < 1:
            raise typer.BadParameter(f"{number} is too small; it must be a positive integer")
    return numbers


def _sweep(values: str, measure: str, default: tuple[int, ...]) -> typer.models.OptionInfo:
    shown = ", ".join(map(str, default))
    text = f"{values} for --measure {measure}; may be repeated."
    return typer.Option(callback=_check_positive, help=text, show_default=shown)


Bundles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BUNDLE]...", help="Paths or locations of bundles of the same model.", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help=f"Model family to export with --random-weights, instead of bundles: {', '.join(FAMILIES)}.",
        show_default=False,
    ),
]
Variant = Annotated[str, typer.Option(help="Variant of the model family.")]
Precisions = Annotated[
    list[Precision] | None,
    typer.Option(
        help="Precision of the export of --model; may be repeated.", show_default=", ".join(PRECISIONS)
    ),
]
Measure = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Measurement to take: {', '.join(MEASURES)}; may be repeated.",
        show_default=", ".join(DEFAULT_MEASURES),
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help='Targets to measure, by name, such as "engine*" or "torch eager float32"; may be repeated.',
        show_default="all",
    ),
]
Height = Annotated[
    int | None,
    typer.Option(help="Image height in pixels.", show_default="the model's sample size, up to 512"),
]
Width = Annotated[int | None, typer.Option(help="Image width in pixels.", show_default="the height")]
_OF_IMAGES = f"Options of --measure {', '.join(IMAGES)}"
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of denoising steps of an image.",
        show_default=str(IMAGE_STEPS),
        rich_help_panel=_OF_IMAGES,
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(help="Name of the sampler.", show_default="the family's", rich_help_panel=_OF_IMAGES),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance scale; 1 is none.",
        show_default="the family's",
        rich_help_panel=_OF_IMAGES,
    ),
]
CacheInterval = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Measure images with the step cache too: a full step every so many.",
        show_default=False,
        rich_help_panel=_OF_IMAGES,
    ),
]
GuidanceEnd = Annotated[
    float | None,
    typer.Option(
        help="Measure images whose guidance ends after this fraction of the steps too, from 0 to 1.",
        show_default=False,
        rich_help_panel=_OF_IMAGES,
    ),
]
TinyDecoder = Annotated[
    bool,
    typer.Option(
        "--tiny-decoder",
        help="Measure images that the tiny VAE of previews decodes too.",
        rich_help_panel=_OF_IMAGES,
    ),
]
FewSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Measure images of this number of steps of the sampler lcm without guidance too.",
        show_default=False,
        rich_help_panel=_OF_IMAGES,
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Number of turns of each target.")]
Runs = Annotated[int, typer.Option(min=1, help="Number of measured runs in a turn.")]
Size = Annotated[Numbers, _sweep("Height and width in pixels", "size", SIZES)]
Batch = Annotated[Numbers, _sweep("Batch size", "batch", BATCHES)]
Frames = Annotated[
    Numbers,
    _sweep("Number of frames (the first value holds for the other measurements)", "frames", FRAMES),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Number of CPU threads of each target.", show_default="one per core"),
]
Optimum = Annotated[
    Path | None,
    typer.Option(
        metavar="PYTHON",
        help="Path to a Python interpreter with optimum's ONNX exporter, whose export is measured too.",
        show_default=False,
    ),
]
Sdcpp = Annotated[
    Path | None,
    typer.Option(
        metavar="PYTHON",
        help="Path to a Python interpreter with stable-diffusion-cpp-python, which is measured too.",
        show_default=False,
        rich_help_panel=_OF_IMAGES,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        parser=local_path("output"),
        metavar="DIR",
        help="Path to the output directory, which also caches exports.",
        show_default=False,
    ),
]
