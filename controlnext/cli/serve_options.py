"""Options of ``controlnext serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.cli.options import local_path

LIMITS, LOG = "Limits", "Log"

Bundles = Annotated[
    list[str],
    typer.Argument(
        metavar="BUNDLE",
        help="Paths or locations of the bundle directories; the name of a directory is the name of its"
        " model.",
        show_default=False,
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every address of this machine.")]
Port = Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")]
ApiKeys = Annotated[
    Path | None,
    typer.Option(
        parser=local_path("api_keys"),
        metavar="FILE",
        help="Path to a file of keys, one a line, of which each request needs one.",
        show_default="no key is needed",
    ),
]
Loras = Annotated[
    Path | None,
    typer.Option(
        parser=local_path("loras"),
        metavar="DIR",
        help="Path to a directory of LoRAs (.safetensors) that requests may choose by name.",
        show_default=False,
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(
        metavar="GIB",
        help="Memory for the loaded bundles; the least recently used make room.",
        show_default="no limit",
    ),
]
Grace = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="Time for running requests to finish when the server stops."),
]
MaxRows = Annotated[
    int,
    typer.Option(
        help="Largest number of rows in a run of the denoiser; a guided image is two rows.",
        rich_help_panel=LIMITS,
    ),
]
Queue = Annotated[
    int,
    typer.Option(
        help="Largest number of requests that wait; more are refused with status 429.",
        rich_help_panel=LIMITS,
    ),
]
MaxBody = Annotated[
    int,
    typer.Option(metavar="MIB", help="Largest body of a request.", rich_help_panel=LIMITS),
]
MaxPixels = Annotated[
    int,
    typer.Option(help="Largest number of pixels of an image in a request.", rich_help_panel=LIMITS),
]
MaxSteps = Annotated[int, typer.Option(help="Largest number of denoising steps.", rich_help_panel=LIMITS)]
MaxImages = Annotated[
    int, typer.Option(help="Largest number of images of a request.", rich_help_panel=LIMITS)
]
MaxSize = Annotated[
    int,
    typer.Option(metavar="PIXELS", help="Largest height and width of a result.", rich_help_panel=LIMITS),
]
MaxFrames = Annotated[int, typer.Option(help="Largest number of frames of a clip.", rich_help_panel=LIMITS)]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Write the log as JSON, one object a line.", rich_help_panel=LOG)
]
LogPrompts = Annotated[
    bool, typer.Option("--log-prompts", help="Write prompts into the log.", rich_help_panel=LOG)
]
