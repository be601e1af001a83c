"""Shared fixtures: models, exported once per run for all worker processes; the command line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from controlnext.cli import console, main
from support.cli import Cli, Done
from support.exports import export_shapes, export_tiny, once
from support.without_torch import TORCH_HERE

pytest_plugins = ["support.suite"]

# the same examples in every run, without a deadline on busy machines
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each(worker_id: str) -> None:
    """Use one thread per worker process: with more threads than cores, ONNX Runtime's threads spin."""
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
    """Return a temporary directory that all worker processes of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session", autouse=True)
def _graphs_are_traced_once(shared_folder: Path) -> None:
    if not TORCH_HERE:
        return
    from controlnext.export import exporter as bundle
    from support.traces import traced_once

    bundle.trace = traced_once(bundle.trace, shared_folder / "traces")


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_are_read_once() -> None:
    if not TORCH_HERE:
        return
    from controlnext.weights import base, shipped
    from support.tokenizers_once import read_once

    base.read_tokenizer = read_once(base.read_tokenizer)
    shipped.shipped_clip_tokenizer = read_once(shipped.shipped_clip_tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(shared_folder: Path) -> Callable[[str], Path]:
    """Return the directory of a variant's tiny model: ``base/`` (diffusers layout, no text encoders) and
    ``control.safetensors``."""
    from support.recipe import write_checkpoint

    return lambda variant: once(
        shared_folder / f"tiny-{variant}", lambda directory: write_checkpoint(variant, directory)
    )


@pytest.fixture(scope="session")
def tiny(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Path]:
    """Return the tiny model of a variant as a bundle of a precision. Tests must not write to it."""

    def bundle(variant: str, precision: str = "fp32") -> Path:
        make = partial(export_tiny, variant, tiny_checkpoint(variant), precision)
        return once(shared_folder / f"tiny-{variant}-{precision}", make)

    return bundle


@pytest.fixture(scope="session")
def tiny_checkpoint_dir(tiny_checkpoint: Callable[[str], Path]) -> Path:
    """Return the directory of the tiny SDXL."""
    return tiny_checkpoint("sdxl")


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Callable[..., Path]) -> Path:
    """Return the tiny SDXL as a float32 bundle."""
    return tiny("sdxl")


@pytest.fixture(scope="session")
def tiny_bundle_fp16(tiny: Callable[..., Path]) -> Path:
    """Return the tiny SDXL as a float16 bundle."""
    return tiny("sdxl", "fp16")


@pytest.fixture(scope="session")
def shapes_bundle(shared_folder: Path) -> Path:
    """Return the small trained model as a float32 bundle. Tests must not write to it."""
    return once(shared_folder / "shapes-fp32", lambda directory: export_shapes("fp32", directory))


@pytest.fixture(scope="session")
def shapes_bundle_fp16(shared_folder: Path) -> Path:
    """Return the small trained model as a float16 bundle. Tests must not write to it."""
    return once(shared_folder / "shapes-fp16", lambda directory: export_shapes("fp16", directory))


@pytest.fixture(scope="session")
def shapes_bundle_int8(shared_folder: Path) -> Path:
    """Return the small trained model as an int8 bundle. Tests must not write to it."""
    return once(shared_folder / "shapes-int8", lambda directory: export_shapes("int8", directory))


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs ``controlnext`` (or another entry point) in this process.

    However long that takes, there are no lines on its progress.
    """
    monkeypatch.setattr(console, "LINE_SECONDS", threading.TIMEOUT_MAX)

    def run(*arguments: object, entry: Callable[[], None] = main) -> Done:
        monkeypatch.setattr(sys, "argv", ["controlnext", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            entry()
        return Done(int(stop.value.code or 0), *capfd.readouterr())

    return run
