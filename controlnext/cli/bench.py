"""``controlnext bench``: a bundle's engines beside what a user would run instead."""

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
"""Of ``--model``, unless others are asked for."""

Numbers = list[int] | None


def _at_least_one(numbers: Numbers) -> Numbers:
    for number in numbers or ():
        if number < 1:
            raise typer.BadParameter(f"{number} is too small; give whole numbers from 1 on")
    return numbers


def _places(measure: str, what: str, default: tuple[int, ...]) -> typer.models.OptionInfo:
    shown = ", ".join(map(str, default))
    text = f"{what} of --measure {measure}; may be repeated."
    return typer.Option(callback=_at_least_one, help=text, show_default=shown)


def bench(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE]...", help="Bundles of one model.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Instead of bundles: this family with --random-weights ({', '.join(FAMILIES)}).",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[str, typer.Option(help="Release of that family.")] = "auto",
    random_weights: options.RandomWeights = None,
    precision: Annotated[
        list[Precision] | None,
        typer.Option(help="Of --model; may be repeated.", show_default=", ".join(PRECISIONS)),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What is measured; may be repeated: {', '.join(MEASURES)}.",
            show_default=", ".join(DEFAULT_MEASURES),
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help='Targets by name: "engine*", "torch eager float32"; may be repeated.',
            show_default="all",
        ),
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="In pixels.", show_default="what the model was made for, up to 512")
    ] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.", show_default="as the height")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of an image.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each target.")] = 3,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs in a turn.")] = 2,
    size: Annotated[Numbers, _places("size", "Heights and widths", SIZES)] = None,
    batch: Annotated[Numbers, _places("batch", "Images at a time", BATCHES)] = None,
    frames: Annotated[
        Numbers, _places("frames", "Frames of a clip, of which the first counts else,", FRAMES)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each target.", show_default="one for each core")
    ] = None,
    device: options.Device = "auto",
    optimum: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Interpreter of an environment that has optimum's ONNX exporter: its export of the base"
            " model is measured too.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for bench.json, bench.md and bench.png, and for what has to be exported, which is"
            " used again the next time.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure bundles of one model beside PyTorch, diffusers and the base model, in turns.

    Each target runs in a process of its own with as many threads as the others. One that cannot run is a
    row with the reason.
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
        what = "both bundles and --model" if bundles else "neither a bundle nor --model"
        raise InputError(f"{what} were given; give bundles, or --model and --random-weights")
    if model is None and (random_weights is not None or precision):
        raise InputError("--random-weights and --precision belong to --model; leave them out with a bundle")
    if model is not None and random_weights is None:
        raise InputError(
            "--model was given without --random-weights; give it a seed, or export your weights and give the"
            " bundle"
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
