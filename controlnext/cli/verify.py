"""``controlnext verify``: compare a bundle with PyTorch, on the terminal and as an HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from controlnext.bundle.files import check_new_file
from controlnext.bundle.reader import read_manifest
from controlnext.cli import options, verify_options
from controlnext.cli.bundles import fetch_bundle
from controlnext.cli.console import print_json, progress
from controlnext.cli.sources import Sources
from controlnext.cli.tables import print_parity
from controlnext.errors import InputError, ParityError
from controlnext.families import Family, get_family
from controlnext.optional import extra
from controlnext.runtime.media.image_files import read_image

if TYPE_CHECKING:
    from controlnext.bundle.manifest import Manifest
    from controlnext.evaluation.inputs import SamplingRun
    from controlnext.evaluation.ranges import Ranges
    from controlnext.weights import Checkpoint


def verify(
    bundle: options.Bundle,
    report: verify_options.Report = None,
    base: options.Base = None,
    control: options.Control = None,
    unet_weights: options.UnetWeights = None,
    unet_increments: options.UnetIncrements = False,
    vae: options.Vae = None,
    preview_vae: options.PreviewVae = None,
    lora: options.Lora = None,
    textual_inversion: options.TextualInversion = None,
    ip_adapter: options.IpAdapter = None,
    ip_adapter_image_encoder: options.IpAdapterImageEncoder = None,
    no_t5: options.NoT5 = False,
    scheduler: options.Scheduler = None,
    random_weights: options.RandomWeights = None,
    backend: verify_options.Backends = None,
    prompt: verify_options.Prompt = None,
    control_image: verify_options.ControlImage = None,
    steps: verify_options.Steps = None,
    height: verify_options.Height = None,
    width: verify_options.Width = None,
    ranges: verify_options.Ranges = False,
    depth: verify_options.Depth = 3,
    layers: verify_options.Layers = None,
    as_json: options.Json = False,
) -> None:
    """Compare a bundle with PyTorch: each graph, then a whole sampling run.

    PyTorch uses the bundle's weights, or the original ones given by --control (or --random-weights) and the
    other options of the export.
    """
    sources = Sources(
        base=base,
        control=control,
        unet_weights=unet_weights,
        unet_increments=unet_increments,
        vae=vae,
        preview_vae=preview_vae,
        lora=lora,
        textual_inversion=textual_inversion,
        ip_adapter=ip_adapter,
        ip_adapter_image_encoder=ip_adapter_image_encoder,
        no_t5=no_t5,
        scheduler=scheduler,
        random_weights=random_weights,
    )
    if (ranges or layers) and (sources.given or report is not None or backend):
        option = "--ranges" if ranges else "--layers"
        raise InputError(
            f"{option} does not support --report or original weights, nor --backend; remove these options"
        )
    if layers is not None:
        _show_layers(fetch_bundle(bundle, quiet=as_json), fetch_bundle(layers, quiet=as_json), as_json)
        return
    directory = fetch_bundle(bundle, quiet=as_json)
    manifest = read_manifest(directory)
    original = sources.control or sources.random_weights is not None
    _check_backends(backend or ())
    if sources.given and not original:
        raise InputError(
            f"{', '.join(sources.given)} was given without --control; add --control to compare with the"
            " original weights, or remove it to compare with the bundle's own"
        )
    sources.check()
    if report is not None and report.suffix != ".html":
        raise InputError(f"report {report} is not an .html file; give --report FILE.html")
    if report is not None:
        check_new_file(report, "report")
    image = None if control_image is None else read_image(control_image)
    with extra("export"):
        from controlnext.evaluation.inputs import added_words, default_run
        from controlnext.evaluation.parity import automatic_backends, compare
        from controlnext.evaluation.ranges import measure_ranges
        from controlnext.evaluation.report import write_report
        from controlnext.export.exporter import check_parity
        from controlnext.weights import bundle_checkpoint
    family = get_family(manifest.family)
    run = _override(
        default_run(manifest, added_words(directory, manifest)),
        family,
        prompt=prompt,
        control_image=image,
        steps=steps,
        height=height,
        width=width,
    )
    if ranges:
        with progress(quiet=as_json) as bars:
            found = measure_ranges(directory, run, depth, bars)
        _show_ranges(directory, run, found, as_json)
        return
    checkpoint = (
        sources.load(family, manifest.variant, manifest.clip_skip)
        if original
        else bundle_checkpoint(directory)
    )
    _check_adapters(manifest, checkpoint)
    others = dict.fromkeys([*automatic_backends(manifest), *(backend or ())])
    with progress(quiet=as_json) as bars:
        comparison = compare(directory, checkpoint, run, bars, list(others))
    if report is not None:
        write_report(report, manifest, run, comparison)
    if as_json:
        print_json({"bundle": str(bundle), "parity": comparison.rows})
    else:
        print_parity(comparison.rows)
        if report is not None:
            print(f"wrote {report}")
    check_parity(comparison.rows)


def _check_adapters(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise :class:`InputError` unless bundle and weights have as many IP-Adapters."""
    own = len(manifest.graphs[checkpoint.family.denoiser].adapters)
    if len(checkpoint.adapters) != own:
        raise InputError(
            f"the bundle has {own} IP-Adapters, but {len(checkpoint.adapters)} were given to compare with;"
            " give `ip_adapter` those that it was exported with",
            argument="ip_adapter",
        )


def _check_backends(names: Sequence[str]) -> None:
    accepted = verify_options.OTHER_BACKENDS
    for name in names:
        if name not in accepted:
            raise InputError(
                f"--backend {name} cannot be asked for; accepted: {', '.join(accepted)}. ONNX Runtime,"
                " what auto takes in its place, and built engines that this machine can run are compared"
                " without it"
            )


def _show_layers(bundle: Path, other: Path, as_json: bool) -> None:
    with extra("export"):
        from controlnext.evaluation.parity import LIMITS
    with extra("rtx"):
        from controlnext.cli.tables import print_layers
        from controlnext.evaluation.layer_diff import compare_layers
    with progress(quiet=as_json) as bars:
        found = compare_layers(bundle, other, {name: limits.graph for name, limits in LIMITS.items()}, bars)
    if as_json:
        print_json({"bundle": str(bundle), "against": str(other), "graphs": found})
    else:
        print_layers(found)


def _show_ranges(bundle: Path, run: SamplingRun, found: Ranges, as_json: bool) -> None:
    from controlnext.cli.tables import print_ranges
    from controlnext.evaluation.ranges import LARGEST

    if as_json:
        print_json({"bundle": str(bundle), "run": str(run), **msgspec.to_builtins(found)})
    else:
        print_ranges(found)
    if beyond := [tensor.tensor for tensor in found.tensors if tensor.overflows]:
        raise ParityError(
            f"{len(beyond)} float16 tensors of the bundle exceed {LARGEST:g}, first {beyond[0]};"
            " export with --precision fp32, or keep them in float32 in the registry"
        )


def _override(default: SamplingRun, family: Family, **overrides: Any) -> SamplingRun:
    """Return ``default`` with the ``overrides`` that are not None.

    Raises :class:`InputError` for a prompt without text encoders, and for a number of steps or a size that
    the family does not accept.
    """
    if overrides["prompt"] is not None and default.prompt is None:
        raise InputError(
            "the bundle has no text encoders; remove --prompt, random embeddings are used instead"
        )
    run = replace(default, **{name: value for name, value in overrides.items() if value is not None})
    if run.steps < 1:
        raise InputError(f"steps is {run.steps}; it must be a positive integer", argument="steps")
    for size in (run.width, run.height):
        if size < family.size_multiple or size % family.size_multiple:
            raise InputError(
                f"the size is {run.width} x {run.height}; give multiples of {family.size_multiple}"
                f"{family.nearest_sizes(size)}"
            )
    return run
