"""``controlnext bench``: measure a bundle's engines against PyTorch, diffusers and the base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from controlnext.bench.choices import DEFAULT_MEASURES
from controlnext.bundle.files import check_writable, new_file
from controlnext.bundle.reader import read_manifest
from controlnext.bundle.remote import is_remote
from controlnext.bundle.scratch import temporary_directory
from controlnext.cli import bench_options, options
from controlnext.cli.bundles import fetch_bundle
from controlnext.cli.console import print_json, print_table, progress
from controlnext.engines.devices import device_index
from controlnext.errors import InputError, WorkError
from controlnext.families import get_family
from controlnext.optional import extra
from controlnext.types import Precision, Progress

if TYPE_CHECKING:
    from controlnext.bench.results import Results


def bench(
    bundles: bench_options.Bundles = None,
    model: bench_options.Model = None,
    variant: bench_options.Variant = "auto",
    random_weights: options.RandomWeights = None,
    precision: bench_options.Precisions = None,
    measure: bench_options.Measure = None,
    only: bench_options.Only = None,
    height: bench_options.Height = None,
    width: bench_options.Width = None,
    steps: bench_options.Steps = None,
    sampler: bench_options.Sampler = None,
    guidance: bench_options.Guidance = None,
    cache_interval: bench_options.CacheInterval = None,
    guidance_end: bench_options.GuidanceEnd = None,
    tiny_decoder: bench_options.TinyDecoder = False,
    few_steps: bench_options.FewSteps = None,
    rounds: bench_options.Rounds = 3,
    runs: bench_options.Runs = 2,
    size: bench_options.Size = None,
    batch: bench_options.Batch = None,
    frames: bench_options.Frames = None,
    threads: bench_options.Threads = None,
    device: options.Device = "auto",
    optimum: bench_options.Optimum = None,
    sdcpp: bench_options.Sdcpp = None,
    output: bench_options.Output = None,
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
    from controlnext.bench.session import measure as run
    from controlnext.bench.settings import Settings

    settings = Settings(
        measures=list(measure or DEFAULT_MEASURES),
        only=only or ["*"],
        height=height,
        width=width,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        cache_interval=cache_interval,
        guidance_end=guidance_end,
        tiny_decoder=tiny_decoder,
        few_steps=few_steps,
        rounds=rounds,
        runs=runs,
        sizes=size,
        batches=batch,
        frames=frames,
        threads=threads,
        device=device,
        optimum=None if optimum is None else str(optimum),
        sdcpp=None if sdcpp is None else str(sdcpp),
    )
    directories = [fetch_bundle(bundle, quiet=as_json) for bundle in bundles or ()]
    with ExitStack() as stack:
        if output is not None:
            stack.enter_context(_place(output))
        report = stack.enter_context(progress(quiet=as_json))
        made = output or stack.enter_context(temporary_directory("bench"))
        if model is not None:
            assert random_weights is not None
            precisions = precision or list(bench_options.PRECISIONS)
            directories = _export(model, variant, random_weights, precisions, made, report)
        results = run(directories, settings, made, report)
    if output is not None:
        _write(output, results)
    if as_json:
        print_json(msgspec.to_builtins(results))
    else:
        _show(results)
    if not results.measurements:
        reasons = {missing.reason for missing in results.missing}
        raise WorkError(f"nothing was measured: {'; '.join(sorted(reasons)) or 'no target was selected'}")


@contextmanager
def _place(output: Path) -> Iterator[None]:
    """Make the directory ``output``; one that is made here and still empty after an error is removed."""
    new = [path for path in (output, *output.parents) if not path.exists()]
    try:
        check_writable(output / "bench.json")
        yield
    except BaseException:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def _check_choice(
    bundles: list[str], model: str | None, random_weights: int | None, precision: list[Precision] | None
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
    for bundle in bundles:
        if not is_remote(bundle):
            read_manifest(Path(bundle))


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
    with new_file(output / "bench.json") as aside:
        aside.write_bytes(content + b"\n")
    with new_file(output / "bench.md") as aside:
        aside.write_text(markdown(results), encoding="utf-8")
    if results.measurements:
        write_plot(output / "bench.png", results)


def _show(results: Results) -> None:
    from controlnext.bench import results as tables

    print(results.hardware.title)
    print_table("Measured", tables.COLUMNS, tables.rows(results))
    if parts := tables.part_rows(results):
        print_table("Parts of an image", tables.PART_COLUMNS, parts)
