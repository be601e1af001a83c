"""``controlnext bench``: measure a bundle's engines against PyTorch, diffusers and the base model."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from controlnext.bench.targets import DEFAULT_MEASURES, MEASURES
from controlnext.bundle.files import check_writable
from controlnext.cli import options
from controlnext.cli.console import print_json, print_table, progress
from controlnext.engines.base import device_index
from controlnext.errors import InputError
from controlnext.families import FAMILIES, get_family
from controlnext.optional import extra
from controlnext.types import Precision, Progress

if TYPE_CHECKING:
    from controlnext.bench.results import Results

SIZES, BATCHES, FRAMES = (256, 512, 768, 1024), (1, 2, 4), (2, 4, 8)
PRECISIONS = (Precision.FP32, Precision.INT8)
"""Default precisions of ``--model``."""

Numbers = list[int] | None


def _check_positive(numbers: Numbers) -> Numbers:
    for number in numbers or ():
        if number < 1:
            raise typer.BadParameter(f"{number} is too small; it must be a positive integer")
    return numbers


def _sweep(values: str, measure: str, default: tuple[int, ...]) -> typer.models.OptionInfo:
    shown = ", ".join(map(str, default))
    text = f"{values} for --measure {measure}; may be repeated."
    return typer.Option(callback=_check_positive, help=text, show_default=shown)


def bench(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE]...", help="Paths to bundles of the same model.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Model family to export with --random-weights, instead of bundles: {', '.join(FAMILIES)}.",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[str, typer.Option(help="Variant of the model family.")] = "auto",
    random_weights: options.RandomWeights = None,
    precision: Annotated[
        list[Precision] | None,
        typer.Option(
            help="Precision of the export of --model; may be repeated.", show_default=", ".join(PRECISIONS)
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Measurement to take: {', '.join(MEASURES)}; may be repeated.",
            show_default=", ".join(DEFAULT_MEASURES),
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help='Targets to measure, by name, such as "engine*" or "torch eager float32"; may be repeated.',
            show_default="all",
        ),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(help="Image height in pixels.", show_default="the model's sample size, up to 512"),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Image width in pixels.", show_default="the height")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of denoising steps.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Number of turns of each target.")] = 3,
    runs: Annotated[int, typer.Option(min=1, help="Number of measured runs in a turn.")] = 2,
    size: Annotated[Numbers, _sweep("Height and width in pixels", "size", SIZES)] = None,
    batch: Annotated[Numbers, _sweep("Batch size", "batch", BATCHES)] = None,
    frames: Annotated[
        Numbers,
        _sweep("Number of frames (the first value holds for the other measurements)", "frames", FRAMES),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of CPU threads of each target.", show_default="one per core"),
    ] = None,
    device: options.Device = "auto",
    optimum: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Path to a Python interpreter with optimum's ONNX exporter, whose export is measured too.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Path to the output directory, which also caches exports.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Benchmark bundles of one model against PyTorch, diffusers and the base model.

    Each target runs in its own process with the same number of threads. A target that cannot run is a row
    with the reason.
    """
    device_index(device)
    _check_choice(bundles or [], model, random_weights, precision)
    with extra("bench"):
        import matplotlib  # noqa: F401
        import psutil  # noqa: F401
    from controlnext.bench.session import Settings
    from controlnext.bench.session import measure as run

    if output is not None:
        check_writable(output / "bench.json")
    settings = Settings(
        measures=list(measure or DEFAULT_MEASURES),
        only=only or ["*"],
        height=height,
        width=width,
        steps=steps,
        rounds=rounds,
        runs=runs,
        sizes=list(size or SIZES),
        batches=list(batch or BATCHES),
        frames=list(frames or FRAMES),
        threads=threads,
        device=device,
        optimum=None if optimum is None else str(optimum),
    )
    with ExitStack() as stack:
        report = stack.enter_context(progress(quiet=as_json))
        made = output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="controlnext-bench-")))
        if model is not None:
            assert random_weights is not None
            bundles = _export(model, variant, random_weights, precision or list(PRECISIONS), made, report)
        results = run(bundles or [], settings, made, report)
    if output is not None:
        _write(output, results)
    if as_json:
        print_json(msgspec.to_builtins(results))
    else:
        _show(results)


def _check_choice(
    bundles: list[Path], model: str | None, random_weights: int | None, precision: list[Precision] | None
) -> None:
    if (model is None) == (not bundles):
        given = "both bundles and --model" if bundles else "neither a bundle nor --model"
        raise InputError(f"{given} were given; give either bundles or --model with --random-weights")
    if model is None and (random_weights is not None or precision):
        raise InputError("--random-weights and --precision require --model; remove them, or give --model")
    if model is not None and random_weights is None:
        raise InputError(
            "--model was given without --random-weights; give --random-weights SEED, or export your weights"
            " and give the bundle"
        )


def _export(
    model: str, variant: str, seed: int, precisions: list[Precision], made: Path, report: Progress
) -> list[Path]:
    from controlnext.bench.prepare import export_random

    family = get_family(model)
    if variant != "auto":
        family.variant(variant)
    bundles = []
    for precision in dict.fromkeys(precisions):
        report(f"exporting {model} in {precision}", 0.0)
        bundles.append(export_random(model, variant, seed, precision, made / "bundles"))
    return bundles


def _write(output: Path, results: Results) -> None:
    from controlnext.bench.plot import write_plot
    from controlnext.bench.results import markdown

    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    (output / "bench.json").write_bytes(content + b"\n")
    (output / "bench.md").write_text(markdown(results), encoding="utf-8")
    write_plot(output / "bench.png", results)


def _show(results: Results) -> None:
    from controlnext.bench import results as tables

    print(results.hardware.title)
    print_table("Measured", tables.COLUMNS, tables.rows(results))
    if parts := tables.part_rows(results):
        print_table("Parts of an image", tables.PART_COLUMNS, parts)
