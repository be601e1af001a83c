"""What many tests share: models, made once a run whatever the number of worker processes; the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli import Cli, Done
from filelock import FileLock
from hypothesis import settings

from controlnext.cli import main

if TYPE_CHECKING:
    from controlnext.weights import Checkpoint

pytest_plugins = ["suite"]

# the same examples in every run, however busy the machine is
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

SHAPES = Path(__file__).parent.parent / "examples" / "shapes" / "model"


PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_STEPS = 3
"""Of the first of the two runs that a tiny model is calibrated on; the second has one more."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each(worker_id: str) -> None:
    """Worker processes share the cores: with two threads in each of two, ONNX Runtime's wait for each other,
    spinning."""
    if worker_id == "master":
        return
    import onnxruntime

    from controlnext import processor

    plain = onnxruntime.SessionOptions.__init__

    def single(options: onnxruntime.SessionOptions) -> None:
        plain(options)
        options.intra_op_num_threads = 1

    opened = onnxruntime.InferenceSession.__init__

    def without_options(session: onnxruntime.InferenceSession, *given: Any, **named: Any) -> None:
        if len(given) < 2 and "sess_options" not in named:
            named["sess_options"] = onnxruntime.SessionOptions()
        opened(session, *given, **named)

    onnxruntime.SessionOptions.__init__ = single
    onnxruntime.InferenceSession.__init__ = without_options
    processor.usable_cores = lambda: 1


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A temporary folder that the worker processes of one run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session", autouse=True)
def _graphs_are_traced_once(shared_folder: Path) -> None:
    from traces import traced_once

    from controlnext.export import exporter as bundle

    bundle.trace = traced_once(bundle.trace, shared_folder / "traces")


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_are_read_once() -> None:
    from tokenizers_once import read_once

    from controlnext.weights import base, shipped

    base.read_tokenizer = read_once(base.read_tokenizer)
    shipped.shipped_clip_tokenizer = read_once(shipped.shipped_clip_tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(shared_folder: Path) -> Callable[[str], Path]:
    """The folder of the tiny model of a variant: ``base/`` (diffusers layout, no text encoders) and
    ``control.safetensors``."""
    from recipe import write_checkpoint

    return lambda variant: once(
        shared_folder / f"tiny-{variant}", lambda folder: write_checkpoint(variant, folder)
    )


@pytest.fixture(scope="session")
def tiny(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Path]:
    """The tiny model of a variant as a bundle of a precision. Tests read it and never write to it."""

    def bundle(variant: str, precision: str = "fp32") -> Path:
        make = partial(export_tiny, variant, tiny_checkpoint(variant), precision)
        return once(shared_folder / f"tiny-{variant}-{precision}", make)

    return bundle


@pytest.fixture(scope="session")
def tiny_checkpoint_dir(tiny_checkpoint: Callable[[str], Path]) -> Path:
    """The tiny SDXL."""
    return tiny_checkpoint("sdxl")


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Callable[..., Path]) -> Path:
    """The tiny SDXL as a float32 bundle."""
    return tiny("sdxl")


@pytest.fixture(scope="session")
def tiny_bundle_fp16(tiny: Callable[..., Path]) -> Path:
    """The tiny SDXL as a float16 bundle."""
    return tiny("sdxl", "fp16")


@pytest.fixture(scope="session")
def shapes_bundle(shared_folder: Path) -> Path:
    """The small trained model as a float32 bundle. Tests read it and never write to it."""
    return once(shared_folder / "shapes-fp32", lambda folder: export_shapes("fp32", folder))


@pytest.fixture(scope="session")
def shapes_bundle_fp16(shared_folder: Path) -> Path:
    """The small trained model as a float16 bundle. Tests read it and never write to it."""
    return once(shared_folder / "shapes-fp16", lambda folder: export_shapes("fp16", folder))


@pytest.fixture(scope="session")
def shapes_bundle_int8(shared_folder: Path) -> Path:
    """The small trained model as an int8 bundle. Tests read it and never write to it."""
    return once(shared_folder / "shapes-int8", lambda folder: export_shapes("int8", folder))


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs ``controlnext`` (or another entry point) in this process."""

    def run(*arguments: object, entry: Callable[[], None] = main) -> Done:
        monkeypatch.setattr(sys, "argv", ["controlnext", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            entry()
        return Done(int(stop.value.code or 0), *capfd.readouterr())

    return run


def export_shapes(precision: str, bundle: Path) -> None:
    """Export the small trained model as a user does: the command, which compares it with PyTorch."""
    sources = [f"--base={SHAPES}/base", f"--control={SHAPES}/controlnet.safetensors"]
    sources += [f"--unet-weights={SHAPES}/unet.safetensors", "--unet-increments"]
    options = ["--model=sdxl", f"--precision={precision}", f"--output={bundle}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["controlnext", "export", *options, *sources])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code


def load_tiny(variant: str, folder: Path) -> Checkpoint:
    """The checkpoint of a tiny model in ``folder``."""
    from recipe import VARIANTS

    from controlnext.families import get_family
    from controlnext.weights import load_checkpoint

    family = get_family(VARIANTS[variant][0])
    return load_checkpoint(family, base=folder / "base", control=folder / "control.safetensors")


def export_tiny(variant: str, checkpoint_dir: Path, precision: str, bundle: Path, **options: Any) -> None:
    """Export a tiny model to ``bundle`` without comparing it with PyTorch.

    int8 is decided on few and small denoising steps: running and measuring them is most of the time it takes.
    """
    from controlnext.evaluation import calibration_data as sampling
    from controlnext.evaluation.calibration_data import default_examples, run_trajectories
    from controlnext.export import export_bundle
    from controlnext.export.quantization import calibrate as calibration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "MEASURED", 1)
        patch.setattr(calibration, "CROP", 8)
        patch.setattr(sampling, "STEPS", CALIBRATION_STEPS)
        export_bundle(
            load_tiny(variant, checkpoint_dir),
            precision,
            bundle,
            sample=lambda folder, denoise: run_trajectories(folder, denoise, default_examples()[:2]),
            **options,
        )


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """``folder``, made by the first process that asks; the others wait for it."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            make(partial)
            partial.rename(folder)
    return folder
