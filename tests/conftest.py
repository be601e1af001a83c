"""Models that many tests share: made once a run, whatever the number of worker processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

SHAPES = Path(__file__).parent.parent / "examples" / "shapes" / "model"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A temporary folder that the worker processes of one run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def tiny_checkpoint_dir(shared_folder: Path) -> Path:
    """A tiny SDXL: ``base/`` (diffusers layout, without text encoders) and ``control.safetensors``."""
    from recipe import write_checkpoint

    return _once(shared_folder / "tiny-sdxl", lambda folder: write_checkpoint("sdxl", folder))


@pytest.fixture(scope="session")
def tiny_bundle(shared_folder: Path, tiny_checkpoint_dir: Path) -> Path:
    """The tiny SDXL as a float32 bundle. Tests read it and never write to it."""
    return _once(shared_folder / "tiny-fp32", lambda folder: export_tiny(tiny_checkpoint_dir, "fp32", folder))


@pytest.fixture(scope="session")
def tiny_bundle_fp16(shared_folder: Path, tiny_checkpoint_dir: Path) -> Path:
    """The tiny SDXL as a float16 bundle. Tests read it and never write to it."""
    return _once(shared_folder / "tiny-fp16", lambda folder: export_tiny(tiny_checkpoint_dir, "fp16", folder))


@pytest.fixture(scope="session")
def shapes_bundle(shared_folder: Path) -> Path:
    """The small trained model as a float32 bundle. Tests read it and never write to it."""
    return _once(shared_folder / "shapes-fp32", lambda folder: export_shapes("fp32", folder))


@pytest.fixture(scope="session")
def shapes_bundle_fp16(shared_folder: Path) -> Path:
    """The small trained model as a float16 bundle. Tests read it and never write to it."""
    return _once(shared_folder / "shapes-fp16", lambda folder: export_shapes("fp16", folder))


def export_shapes(precision: str, bundle: Path, **environment: str) -> None:
    """Export the small trained model as a user does: the command, which compares it with PyTorch."""
    sources = [f"--base={SHAPES}/base", f"--control={SHAPES}/controlnet.safetensors"]
    sources += [f"--unet-weights={SHAPES}/unet.safetensors", "--unet-increments"]
    command = [sys.executable, "-m", "controlnext", "export", "--model=sdxl", f"--precision={precision}"]
    done = subprocess.run(
        [*command, *sources, f"--output={bundle}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr


def export_tiny(checkpoint_dir: Path, precision: str, bundle: Path) -> None:
    """Export the tiny SDXL to ``bundle`` without comparing it with PyTorch."""
    from controlnext.export import export_bundle
    from controlnext.registry import get_family
    from controlnext.weights import load_checkpoint

    checkpoint = load_checkpoint(
        get_family("sdxl"),
        base=str(checkpoint_dir / "base"),
        control=str(checkpoint_dir / "control.safetensors"),
    )
    export_bundle(checkpoint, precision, bundle)


def _once(folder: Path, make: Callable[[Path], object]) -> Path:
    """``folder``, made by the first process that asks; the others wait for it."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            make(partial)
            partial.rename(folder)
    return folder
