"""Options of ``controlnext build``."""

from __future__ import annotations

from typing import Annotated

import typer

from controlnext.cli.completion import among
from controlnext.engines.tensorrt.flavors import FLAVORS

Backend = Annotated[
    list[str],
    typer.Option(
        autocompletion=among(FLAVORS), help=f"Backend to build engines for: {' or '.join(FLAVORS)}."
    ),
]
Graph = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Name of a graph to build; may be repeated.", show_default="all graphs"
    ),
]
OptimizationLevel = Annotated[
    int,
    typer.Option(
        min=0, max=5, help="Builder optimization level, from 0 (fastest build) to 5 (fastest engine)."
    ),
]
Workspace = Annotated[
    int | None,
    typer.Option(
        min=1,
        # a tebibyte: the library counts bytes in 64 bits
        max=1 << 20,
        metavar="MIB",
        help="Workspace size limit in MiB.",
        show_default="unlimited",
    ),
]
StripWeights = Annotated[
    bool,
    typer.Option(
        "--strip-weights", help="Build engines without weights, which are read from the bundle at load."
    ),
]
ComputeCapability = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X.Y",
        help="Compute capability to build for, or current (tensorrt-rtx only); may be repeated.",
        show_default="8.0 and later",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Rebuild engines that are up to date.")]
