"""Models that tests export, each once per run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from filelock import FileLock

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import write_manifest
from controlnext.bundle.reader import read_manifest
from controlnext.cli import main

if TYPE_CHECKING:
    from controlnext.weights import Checkpoint

SHAPES = Path(__file__).parents[2] / "examples" / "shapes" / "model"

CALIBRATION_STEPS = 3
"""Number of steps of the first of the two calibration runs of a tiny model; the second has one more."""


def export_shapes(precision: str, bundle: Path) -> None:
    """Export the small trained model by the command line, which compares it with PyTorch."""
    sources = [f"--base={SHAPES}/base", f"--control={SHAPES}/controlnet.safetensors"]
    sources += [f"--unet-weights={SHAPES}/unet.safetensors", "--unet-increments"]
    options = ["--model=sdxl", f"--precision={precision}", f"--output={bundle}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["controlnext", "export", *options, *sources])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code


def list_anew(bundle: Path) -> None:
    """Have the manifest of a bundle list its files as they are now."""
    write_manifest(bundle, msgspec.structs.replace(read_manifest(bundle), files=list_files(bundle)))


def load_tiny(variant: str, directory: Path) -> Checkpoint:
    """Load the checkpoint of a tiny model in ``directory``."""
    from controlnext.families import get_family
    from controlnext.weights import load_checkpoint
    from support.recipe import VARIANTS

    family = get_family(VARIANTS[variant][0])
    return load_checkpoint(family, base=directory / "base", control=directory / "control.safetensors")


def export_tiny(variant: str, checkpoint_dir: Path, precision: str, bundle: Path, **options: Any) -> None:
    """Export a tiny model to ``bundle`` without comparing it with PyTorch.

    int8 is decided on few and small denoising steps: running and measuring them is most of the time it takes.
    """
    from controlnext.evaluation import calibration_data as sampling
    from controlnext.evaluation.calibration_data import default_examples, run_trajectories
    from controlnext.export import export_bundle
    from controlnext.export.quantization.config import CalibrationSettings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "STEPS", CALIBRATION_STEPS)
        export_bundle(
            load_tiny(variant, checkpoint_dir),
            precision,
            bundle,
            sample=lambda partial, denoise: run_trajectories(partial, denoise, default_examples()[:2]),
            calibration=CalibrationSettings(measured_steps=1, crop=8, group=40),
            **options,
        )


def once(directory: Path, make: Callable[[Path], object]) -> Path:
    """Return ``directory``, made by the first process that calls this; the others wait for it."""
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            partial = directory.with_name(directory.name + ".partial")
            make(partial)
            partial.rename(directory)
    return directory
