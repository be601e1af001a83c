"""``controlnext build``: build engines of a bundle's graphs."""

from __future__ import annotations

import time
from pathlib import Path

from controlnext.bundle.reader import read_manifest
from controlnext.bundle.remote import is_remote
from controlnext.cli import build_options, options
from controlnext.cli.console import print_json, progress
from controlnext.cli.engines import engine_row, make_plan, print_engines
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.errors import InputError
from controlnext.families import get_family


def build(
    bundle: options.Bundle,
    backend: build_options.Backend,
    graph: build_options.Graph = None,
    height: options.HeightRange = None,
    width: options.WidthRange = None,
    batch: options.BatchRange = None,
    frames: options.FramesRange = None,
    optimization_level: build_options.OptimizationLevel = 3,
    workspace: build_options.Workspace = None,
    strip_weights: build_options.StripWeights = False,
    compute_capability: build_options.ComputeCapability = None,
    force: build_options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Build TensorRT or TensorRT-RTX engines of a bundle's graphs.

    Engines go into the bundle's directory engines. One that was built before from the same graph, with the
    same options and library, is kept.
    """
    started = time.monotonic()
    if is_remote(bundle):
        raise InputError(
            f"bundle {bundle} lies elsewhere, and engines are built into a bundle's directory; copy it to"
            " this machine and give the path"
        )
    directory = Path(bundle)
    manifest = read_manifest(directory)
    unknown = sorted(set(graph or ()) - set(manifest.graphs))
    if unknown:
        raise InputError(f"{bundle} has no graph {unknown[0]}; it has {', '.join(manifest.graphs)}")
    names = [name for name in manifest.parts if not graph or name.partition(".")[0] in graph]
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
        built = plan.build(directory, manifest, names, report, force=force)
    if as_json:
        seconds = round(time.monotonic() - started, 1)
        engines = [engine_row(directory, one) for one in built]
        print_json({"bundle": str(bundle), "engines": engines, "seconds": seconds})
    else:
        print_engines(directory, built)
