"""``controlnext export``: from a checkpoint to a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from controlnext.commands import options
from controlnext.commands.console import print_json, print_parity, progress
from controlnext.commands.extras import extra
from controlnext.commands.sources import NO_SOURCES, Sources, takes_sources
from controlnext.files import check_replaceable
from controlnext.manifest import ParityRow
from controlnext.registry import FAMILIES, get_family


@takes_sources
def export(
    model: Annotated[str, typer.Option(help=f"Family of the model: {', '.join(FAMILIES)}.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the bundle.")],
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="Arithmetic of the graphs.")] = "fp16",
    variant: Annotated[
        str, typer.Option(help="Release of the family; auto reads it off the control weights.")
    ] = "auto",
    sources: Sources = NO_SOURCES,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle that is there.")] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the engine with PyTorch and fail if they differ.",
            show_default="on, but off with --random-weights",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Export a model with its control fused in to a folder that the runtime reads."""
    started = time.monotonic()
    family = get_family(model)
    if variant != "auto":
        family.variant(variant)
    check_replaceable(output, force)
    with extra("export"):
        from controlnext.commands.parity import measure
        from controlnext.export import export_bundle
    if verify is None:
        verify = sources.random_weights is None
    rows: list[ParityRow] = []
    try:
        with progress(quiet=as_json) as report:
            checkpoint = sources.load(family, variant)

            def measured(bundle: Path) -> list[ParityRow]:
                rows.extend(measure(bundle, checkpoint, report))
                return rows

            manifest = export_bundle(
                checkpoint,
                precision,
                output,
                force=force,
                progress=report,
                measure=measured if verify else None,
            )
    finally:
        # also when parity is missed: the table shows by how much
        if rows and not as_json:
            print_parity(rows)
    seconds = round(time.monotonic() - started, 1)
    size = sum(entry.bytes for entry in manifest.files.values())
    if as_json:
        print_json(
            {
                "bundle": str(output),
                "family": manifest.family,
                "variant": manifest.variant,
                "precision": manifest.precision,
                "bytes": size,
                "seconds": seconds,
                "parity": rows,
            }
        )
    else:
        print(f"{output}: {manifest.variant} in {manifest.precision}, {size / 1e6:.0f} MB, {seconds} s")
