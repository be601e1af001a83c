"""``controlnext build``: engines for a bundle's graphs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from controlnext.bundle.reader import read_manifest
from controlnext.cli import options
from controlnext.cli.console import print_json, progress
from controlnext.cli.engines import engine_row, make_plan, print_engines
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.errors import InputError
from controlnext.families import get_family


def build(
    bundle: options.Bundle,
    backend: Annotated[
        list[str],
        typer.Option(help=f"Library to build with: {' or '.join(FLAVORS)}, which needs no GPU for it."),
    ],
    graph: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Graph to build; may be repeated.", show_default="all graphs"),
    ] = None,
    height: options.HeightRange = None,
    width: options.WidthRange = None,
    batch: options.BatchRange = None,
    frames: options.FramesRange = None,
    optimization_level: Annotated[
        int, typer.Option(min=0, max=5, help="0 builds quickest; 5 searches longest for the fastest engine.")
    ] = 3,
    workspace: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="GPU memory that a layer may use besides its tensors.",
            show_default="all there is",
        ),
    ] = None,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights", help="Leave out weights that loading can take from the bundle's graph."
        ),
    ] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X.Y",
            help="GPU architecture to build for, or current for that of this machine (tensorrt-rtx); may be"
            " repeated.",
            show_default="8.0 and later",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even what was built before.")] = False,
    as_json: options.Json = False,
) -> None:
    """Build engines for a bundle's graphs into its folder engines.

    What was built before from the same graph, with the same options and library, stays as it is.
    """
    started = time.monotonic()
    manifest = read_manifest(bundle)
    unknown = sorted(set(graph or ()) - set(manifest.graphs))
    if unknown:
        raise InputError(f"{bundle} has no graph {unknown[0]}; it has {', '.join(manifest.graphs)}")
    plan = make_plan(
        backend,
        tuple(FLAVORS),
        get_family(manifest.family),
        {"height": height, "width": width, "batch": batch, "frames": frames},
        optimization_level=optimization_level,
        workspace=workspace,
        strip_weights=strip_weights,
        targets=compute_capability or (),
    )
    assert plan is not None
    with progress(quiet=as_json) as report:
        built = plan.build(bundle, manifest, graph or list(manifest.graphs), report, force=force)
    if as_json:
        seconds = round(time.monotonic() - started, 1)
        engines = [engine_row(bundle, one) for one in built]
        print_json({"bundle": str(bundle), "engines": engines, "seconds": seconds})
    else:
        print_engines(bundle, built)
