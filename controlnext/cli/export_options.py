"""Options of ``controlnext export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.cli.completion import among
from controlnext.cli.options import local_path
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.families import FAMILIES
from controlnext.types import COMPUTES, Precision

BACKENDS = ("onnx", *FLAVORS)


def _check_compute(name: str | None) -> str | None:
    if name is not None and name not in COMPUTES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(COMPUTES)}")
    return name


Model = Annotated[
    str, typer.Option(autocompletion=among(FAMILIES), help=f"Model family: {', '.join(FAMILIES)}.")
]
Output = Annotated[
    Path, typer.Option(parser=local_path("output"), metavar="DIR", help="Path to the output directory.")
]
ExportPrecision = Annotated[Precision, typer.Option(help="Precision of the exported graphs.")]
Variant = Annotated[
    str, typer.Option(help="Variant of the model family; auto detects it from the control weights.")
]
LoraRank = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Room for LoRAs that are chosen at run time: the largest rank of those that are used together.",
        show_default="0, none",
    ),
]
ClipSkip = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Number of last layers of the text encoders to skip for prompts, as in diffusers.",
        show_default="0, none",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        parser=local_path("calibration"),
        metavar="DIR",
        help="Path to a directory of int8 calibration images, each with its prompt in NAME.txt.",
        show_default="drawn examples",
    ),
]
Compute = Annotated[
    str | None,
    typer.Option(
        callback=_check_compute,
        autocompletion=among(COMPUTES),
        metavar=f"<{'|'.join(COMPUTES)}>",
        help="Precision of the layers that are not int8.",
        show_default="fp16 with --backend tensorrt or tensorrt-rtx, else fp32",
    ),
]
Backend = Annotated[
    list[str] | None,
    typer.Option(
        autocompletion=among(BACKENDS),
        help=f"Backend to build engines for after the export: {', '.join(BACKENDS)}; may be repeated.",
        show_default="onnx, the graphs only",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing bundle.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print what would be fetched, read and written, and the memory and disk that it takes, and do"
        " nothing of it.",
    ),
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Compare the outputs with PyTorch and fail if they differ.",
        show_default="on; off with --random-weights",
    ),
]
