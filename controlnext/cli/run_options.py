"""The options of ``controlnext run`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.runtime.preprocess import PREPROCESSORS

IMAGES, CLIPS = "Bundles that make images", "Bundles that make clips"

ControlImage = Annotated[
    list[Path],
    typer.Option(
        metavar="PATH",
        help="The control image; for a clip a folder of images, in the order of their names, or a"
        " video. Once for each control of the bundle.",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"Make the control out of what is given: {', '.join(PREPROCESSORS)}."),
]
Scale = Annotated[
    list[float] | None,
    typer.Option(help="Strength of the control: one for all, or one for each.", show_default="1"),
]
ControlStart = Annotated[
    float | None,
    typer.Option(help="Where in the run, of 0 to 1, the control sets in.", show_default="0"),
]
ControlEnd = Annotated[float | None, typer.Option(help="Where it ends.", show_default="1")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the family's")]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance, none at 1; for a clip that of its last frame, none below 1.",
        show_default="the family's",
    ),
]
Sampler = Annotated[str | None, typer.Option(help="Sampler.", show_default="the family's")]
Seed = Annotated[int, typer.Option(help="Start of the random numbers.")]
Height = Annotated[int | None, typer.Option(help="In pixels.", show_default="the control image's")]
Width = Annotated[int | None, typer.Option(help="In pixels.", show_default="the control image's")]
Prompt = Annotated[str | None, typer.Option(help="What the image shall show.", rich_help_panel=IMAGES)]
NegativePrompt = Annotated[str | None, typer.Option(help="What it shall not show.", rich_help_panel=IMAGES)]
NumImages = Annotated[
    int | None,
    typer.Option(
        help="How many images; several are written to image-1.png, image-2.png and so on.",
        show_default="1",
        rich_help_panel=IMAGES,
    ),
]
VaeTiling = Annotated[
    bool | None,
    typer.Option(
        "--vae-tiling",
        help="Decode in overlapping tiles, for large images: less memory, but colours may shift from"
        " tile to tile.",
        rich_help_panel=IMAGES,
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The image that shall move.", rich_help_panel=CLIPS),
]
Frames = Annotated[
    int | None,
    typer.Option(min=1, help="Length of the clip.", show_default="the control's", rich_help_panel=CLIPS),
]
Fps = Annotated[
    float | None,
    typer.Option(
        help="Frames a second of the file.",
        show_default="the control video's, or 7",
        rich_help_panel=CLIPS,
    ),
]
FramesPerBatch = Annotated[
    int | None,
    typer.Option(
        help="A longer clip is denoised in windows of so many frames.",
        show_default="14",
        rich_help_panel=CLIPS,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(help="Frames that windows share.", show_default="4", rich_help_panel=CLIPS),
]
MinGuidance = Annotated[
    float | None,
    typer.Option(help="Guidance of the first frame.", show_default="1", rich_help_panel=CLIPS),
]
NoiseAugStrength = Annotated[
    float | None,
    typer.Option(help="Noise added to the image.", show_default="0.02", rich_help_panel=CLIPS),
]
DecodeChunk = Annotated[
    int | None,
    typer.Option(help="Frames that are decoded at a time.", show_default="a window's", rich_help_panel=CLIPS),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="The image; or the clip: .mp4, .gif or a new folder for its frames. A file that is there"
        " is replaced.",
        show_default="image.png or clip.mp4",
    ),
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="One engine in memory at a time: less memory, but loading takes longer."),
]
