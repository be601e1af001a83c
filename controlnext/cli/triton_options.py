"""Options of ``controlnext triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlnext.cli.options import local_path
from controlnext.cli.serve_options import LIMITS

Output = Annotated[
    Path,
    typer.Option(
        parser=local_path("output"),
        metavar="MODEL_REPOSITORY",
        help="Path to the model repository, new or with other models.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None, typer.Option(help="Name of the model.", show_default="that of the bundle's directory")
]
Decoupled = Annotated[
    bool,
    typer.Option(
        "--decoupled/--no-decoupled",
        help="Let a request have several responses, for partial images; plain HTTP inference needs one.",
    ),
]
Queue = Annotated[
    int,
    typer.Option(
        help="Largest number of requests that wait; more are refused as unavailable.",
        rich_help_panel=LIMITS,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing model of this name.")]
