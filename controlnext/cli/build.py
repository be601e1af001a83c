"""``controlnext build``: build engines of a bundle's graphs."""

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
        typer.Option(help=f"Backend to build engines for: {' or '.join(FLAVORS)}."),
    ],
    graph: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name of a graph to build; may be repeated.", show_default="all graphs"
        ),
    ] = None,
    height: options.HeightRange = None,
    width: options.WidthRange = None,
    batch: options.BatchRange = None,
    frames: options.FramesRange = None,
    optimization_level: Annotated[
        int,
        typer.Option(
            min=0, max=5, help="Builder optimization level, from 0 (fastest build) to 5 (fastest engine)."
        ),
    ] = 3,
    workspace: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Workspace size limit in MiB.",
            show_default="unlimited",
        ),
    ] = None,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights", help="Build engines without weights, which are read from the bundle at load."
        ),
    ] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X.Y",
            help="Compute capability to build for, or current (tensorrt-rtx only); may be repeated.",
            show_default="8.0 and later",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild engines that are up to date.")] = False,
    as_json: options.Json = False,
) -> None:
    """Build TensorRT or TensorRT-RTX engines of a bundle's graphs.

    Engines go into the bundle's directory engines. One that was built before from the same graph, with the
    same options and library, is kept.
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
