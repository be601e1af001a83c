"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.engines import registry


def _check_seed(seed: int | None) -> int | None:
    if seed is not None and seed < 0:
        raise typer.BadParameter(f"{seed} is negative; give a whole number from 0 on")
    return seed


Bundle = Annotated[Path, typer.Argument(help="Folder that an export made.", show_default=False)]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Base model: diffusers folder, single-file checkpoint or hub id (owner/name@revision).",
        show_default="the family's usual base",
    ),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Control module weights: file, folder or hub id. More than one for several controls at once.",
        show_default=False,
    ),
]
UnetWeights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="The UNet tensors that were trained with the control module.",
        show_default=False,
    ),
]
UnetIncrements = Annotated[
    bool,
    typer.Option("--unet-increments", help="The trained UNet tensors are differences to add to the base's."),
]
Vae = Annotated[str | None, typer.Option(metavar="PATH_OR_ID", help="Replacement VAE.")]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID[:SCALE]",
        help="LoRA to fuse into the base, with its strength (1 if none is given); may be repeated.",
        show_default=False,
    ),
]
NoT5 = Annotated[
    bool, typer.Option("--no-t5", help="Leave the T5 text encoder out (sd3): less text, 9 GB less.")
]
Scheduler = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE[,...]",
        help="Settings of the scheduler in place of the base's, such as prediction_type=v_prediction for"
        " v-prediction checkpoints; values as in JSON; may be repeated.",
        show_default=False,
    ),
]
RandomWeights = Annotated[
    int | None,
    typer.Option(
        metavar="SEED",
        callback=_check_seed,
        help="The family's full-size architecture with random numbers instead of weights from files:"
        " for trials of size and speed.",
    ),
]
_RANGE = "N|MIN:OPT:MAX"
HeightRange = Annotated[
    str | None,
    typer.Option(
        "--height",
        metavar=_RANGE,
        help="Heights in pixels that engines are built for; they are fastest at OPT.",
        show_default="half to one and a half of what the model was trained at",
    ),
]
WidthRange = Annotated[
    str | None,
    typer.Option("--width", metavar=_RANGE, help="Widths, likewise.", show_default="as the height"),
]
BatchRange = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar=_RANGE,
        help="Images at a time. The denoiser gets rows for both halves of a guided batch: 1 to twice MAX.",
        show_default="1:1:4, of clips 1",
    ),
]
FramesRange = Annotated[
    str | None,
    typer.Option(
        "--frames",
        metavar=_RANGE,
        help="Frames of a window, and those decoded at a time (svd).",
        show_default="1 to what the model was trained with",
    ),
]
RunBackend = Annotated[
    str,
    typer.Option(
        "--backend",
        help=f"What runs it: {', '.join(registry.BACKENDS)}; auto takes the fastest that works.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads that compute on the processor.",
        show_default="one for each core that this process may use",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
