"""``controlnext export``: export a checkpoint to a bundle."""

from __future__ import annotations

import time
from pathlib import Path

from controlnext.bundle.files import check_replaceable
from controlnext.bundle.manifest import Manifest, ParityRow
from controlnext.cli import export_options, options
from controlnext.cli.console import print_json, progress
from controlnext.cli.engines import engine_row, make_plan, print_engines
from controlnext.cli.export_plan import check_output, make_export_plan, print_export_plan
from controlnext.cli.sources import Sources
from controlnext.cli.tables import print_parity
from controlnext.engines.tensorrt.build import Built
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.errors import InputError
from controlnext.evaluation.calibration_data import (
    default_examples,
    read_examples,
    run_trajectories,
)
from controlnext.families import get_family
from controlnext.optional import extra
from controlnext.types import Precision
from controlnext.versions import check_versions


def export(
    model: export_options.Model,
    output: export_options.Output,
    precision: export_options.ExportPrecision = Precision.FP16,
    variant: export_options.Variant = "auto",
    base: options.Base = None,
    control: options.Control = None,
    unet_weights: options.UnetWeights = None,
    unet_increments: options.UnetIncrements = False,
    vae: options.Vae = None,
    preview_vae: options.PreviewVae = None,
    lora: options.Lora = None,
    lora_rank: export_options.LoraRank = 0,
    textual_inversion: options.TextualInversion = None,
    clip_skip: export_options.ClipSkip = 0,
    ip_adapter: options.IpAdapter = None,
    ip_adapter_image_encoder: options.IpAdapterImageEncoder = None,
    no_t5: options.NoT5 = False,
    scheduler: options.Scheduler = None,
    random_weights: options.RandomWeights = None,
    calibration: export_options.Calibration = None,
    compute: export_options.Compute = None,
    backend: export_options.Backend = None,
    height: options.HeightRange = None,
    width: options.WidthRange = None,
    batch: options.BatchRange = None,
    frames: options.FramesRange = None,
    force: export_options.Force = False,
    verify: export_options.Verify = None,
    dry_run: export_options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Export a ControlNeXt model to a bundle of ONNX graphs."""
    started = time.monotonic()
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
    family = get_family(model)
    if variant != "auto":
        family.variant(variant)
    sizes = {"height": height, "width": width, "batch": batch, "frames": frames}
    plan = make_plan(backend or (), export_options.BACKENDS, family, sizes)
    if not dry_run:
        check_replaceable(output, force)
    if not precision.calibrated and (calibration or compute):
        calibrated = " or ".join(known for known in Precision if known.calibrated)
        raise InputError(f"--calibration and --compute require --precision {calibrated}; remove them")
    sources.check()
    examples = default_examples() if calibration is None else read_examples(calibration)
    with progress(quiet=as_json) as report, extra("export"):
        check_versions("export")
        report("loading PyTorch", 0.0)
        import torch  # noqa: F401

        report("loading diffusers and transformers", 0.3)
        from controlnext.evaluation.parity import measure
        from controlnext.export import export_bundle
        from controlnext.export.lora import check_lora_rank

        report("loaded PyTorch, diffusers and transformers", 1.0)
    if verify is None:
        verify = sources.random_weights is None
    compute = compute or (Precision.FP32 if plan is None else Precision.FP16)
    if dry_run:
        made = make_export_plan(
            sources,
            family,
            variant,
            clip_skip,
            precision,
            compute,
            output,
            force=force,
            compare=verify,
            engines=[name for name in backend or () if name in FLAVORS],
            quiet=as_json,
        )
        print_export_plan(made, as_json)
        check_lora_rank(family, lora_rank)
        check_output(output, force)
        return
    rows: list[ParityRow] = []
    engines: list[Built] = []
    try:
        with progress(quiet=as_json) as report:
            checkpoint = sources.load(family, variant, clip_skip)

            def measured(bundle: Path) -> list[ParityRow]:
                rows.extend(measure(bundle, checkpoint, report))
                return rows

            manifest = export_bundle(
                checkpoint,
                precision,
                output,
                lora_rank=lora_rank,
                compute=compute,
                sample=lambda bundle, denoise: run_trajectories(bundle, denoise, examples, report),
                force=force,
                progress=report,
                measure=measured if verify else None,
            )
            if plan is not None:
                engines = plan.build(output, manifest, manifest.parts, report)
    finally:
        # also when parity is missed: the table shows by how much
        if rows and not as_json:
            print_parity(rows)
    _tell(output, manifest, rows, engines, round(time.monotonic() - started, 1), as_json)


def _tell(
    output: Path,
    manifest: Manifest,
    rows: list[ParityRow],
    engines: list[Built],
    seconds: float,
    as_json: bool,
) -> None:
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
                "engines": [engine_row(output, engine) for engine in engines],
            }
        )
    else:
        print_engines(output, engines)
        print(f"{output}: {manifest.variant} in {manifest.precision}, {size / 1e6:.0f} MB, {seconds} s")
