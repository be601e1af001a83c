"""Options shared by several subcommands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from controlnext.bundle.remote_files import has_scheme
from controlnext.cli.completion import among
from controlnext.engines import registry
from controlnext.errors import InputError


def local_path(argument: str) -> Callable[[str], Path]:
    """Return the parser of an option that is a path on this machine, unlike the location of a bundle."""

    def parse(given: str) -> Path:
        if not given or has_scheme(given):
            raise InputError(
                f"{argument} is {given or 'empty'}; it must be a path on this machine", argument=argument
            )
        return Path(given)

    return parse


def _check_seed(seed: int | None) -> int | None:
    if seed is not None and seed < 0:
        raise typer.BadParameter(f"{seed} is negative; it must be an integer of at least 0")
    return seed


Bundle = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE",
        help="Path to the bundle directory, or where it lies: s3://..., gs://..., hf://owner/name.",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Path or hub id (owner/name@revision) of the base model: diffusers directory or single file.",
        show_default="the family's usual base",
    ),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Path or hub id of the control weights; repeat for several controls.",
        show_default=False,
    ),
]
UnetWeights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Path or hub id of UNet weights fine-tuned with the control; may be repeated.",
        show_default=False,
    ),
]
UnetIncrements = Annotated[
    bool,
    typer.Option(
        "--unet-increments", help="Add the fine-tuned UNet weights to the base's instead of replacing them."
    ),
]
Vae = Annotated[
    str | None,
    typer.Option(metavar="PATH_OR_ID", help="Path or hub id of a VAE to use instead of the base's."),
]
PreviewVae = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Path or hub id of a tiny VAE (AutoencoderTiny) to decode previews with.",
        show_default=False,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID[:SCALE]",
        help="Path or hub id of a LoRA to fuse into the base, with its scale (default 1); may be repeated.",
        show_default=False,
    ),
]
TextualInversion = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID[:TOKEN]",
        help="Path or hub id of a textual inversion, and its word in prompts (default: the file's); may be"
        " repeated.",
        show_default=False,
    ),
]
IpAdapter = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Path or hub id of an IP-Adapter's file, for image prompts at run time; may be repeated. With"
        " --random-weights: base or plus.",
        show_default=False,
    ),
]
IpAdapterImageEncoder = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Path or hub id of the IP-Adapters' image encoder.",
        show_default="image_encoder beside the first",
    ),
]
NoT5 = Annotated[
    bool, typer.Option("--no-t5", help="Export without the T5 text encoder (sd3 only), which takes 9 GB.")
]
Scheduler = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE[,...]",
        help="Override scheduler settings, such as prediction_type=v_prediction; may be repeated.",
        show_default=False,
    ),
]
RandomWeights = Annotated[
    int | None,
    typer.Option(
        metavar="SEED",
        callback=_check_seed,
        help="Random seed of weights at full size, instead of weights from files, to test size and speed.",
    ),
]
_RANGE = "N|MIN:OPT:MAX"
HeightRange = Annotated[
    str | None,
    typer.Option(
        "--height",
        metavar=_RANGE,
        help="Image height range of the engines in pixels.",
        show_default="0.5 to 1.5 times the training size",
    ),
]
WidthRange = Annotated[
    str | None,
    typer.Option(
        "--width",
        metavar=_RANGE,
        help="Image width range of the engines in pixels.",
        show_default="the height",
    ),
]
BatchRange = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar=_RANGE,
        help="Batch size range of the engines, in images (guidance doubles it for the denoiser).",
        show_default="1:1:4; 1 for clips",
    ),
]
FramesRange = Annotated[
    str | None,
    typer.Option(
        "--frames",
        metavar=_RANGE,
        help="Frame count range of the engines, per window and per decoded chunk (svd only).",
        show_default="1 to the training length",
    ),
]
RunBackend = Annotated[
    str,
    typer.Option(
        "--backend",
        autocompletion=among(("auto", *registry.BACKENDS)),
        help=f"Inference backend: {', '.join(registry.BACKENDS)}; auto selects the fastest available.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        autocompletion=among(("auto", "cpu", "cuda")), help="Device to run on: auto, cpu, cuda or cuda:N."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of CPU threads.",
        show_default="one per available core",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
