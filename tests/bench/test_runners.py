"""The benchmark's runners run the same networks and weights with the given threads, and count all the
time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from controlnext.bench.engines import EngineRunner
from controlnext.bench.messages import Work
from controlnext.bench.peers import ControlNetRunner
from controlnext.bench.prepare import export_uncontrolled, save_stock_pipeline
from controlnext.bench.pytorch import TorchRunner
from controlnext.bench.requests import image_arguments, step_feed
from controlnext.bench.stock import PipelineRunner
from controlnext.bench.timeline import PARTS, TimedBackend, image_timeline
from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine, select_backend
from controlnext.errors import InputError
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.weights import bundle_checkpoint

WORK = Work(height=64, width=64, steps=2)


@pytest.fixture(scope="module")
def uncontrolled(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "uncontrolled"
    export_uncontrolled(bundle, folder)
    return folder


def test_threads_reach_onnx_runtime_and_pytorch(bundle: Path) -> None:
    runner = EngineRunner(bundle, 1, device="cpu")
    runner.begin("denoiser")
    engine: Any = runner.pipeline.bundle.engine("unet")
    sessions = (engine._engine._prologue, engine._engine._step)
    assert {session.get_session_options().intra_op_num_threads for session in sessions} == {1}
    before = torch.get_num_threads()
    try:
        TorchRunner(bundle, 3, device="cpu", dtype="float32").begin("denoiser")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    with pytest.raises(InputError, match="threads is 0; it must be an integer from 1 to"):
        Pipeline.load(bundle, threads=0)


def test_the_parts_of_an_image_are_all_of_it(bundle: Path) -> None:
    timed = TimedBackend(select_backend("onnxruntime"))
    with Pipeline.of(Bundle(bundle, timed, cache=False)) as pipeline:
        arguments = image_arguments(pipeline.bundle.manifest, WORK)
        for first in (True, False):
            started = time.perf_counter()
            parts, images = image_timeline(pipeline, timed, arguments)
            elapsed = time.perf_counter() - started
            assert tuple(parts) == PARTS
            assert [image.size for image in images] == [(WORK.width, WORK.height)]
            assert min(parts.values()) >= 0
            assert (parts["load"] > 0) == first
            # a ratio: the parts leave nothing large out
            assert 0.5 * elapsed < sum(parts.values()) <= elapsed


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_uncontrolled_engine_is_the_base_model(
    precision: str, tiny: Callable[..., Path], uncontrolled: Path, tmp_path: Path
) -> None:
    origin, folder = tiny("sd15", precision), uncontrolled
    if precision == "int8":
        folder = tmp_path / "int8"
        export_uncontrolled(origin, folder)
    manifest = read_manifest(folder)
    feed = step_feed(folder, WORK)
    assert set(feed) == {"sample", "timestep", "encoder_hidden_states"}
    assert list(manifest.graphs) == ["unet"]
    assert bool(manifest.graphs["unet"].quantization) == (precision == "int8")
    with open_engine(folder, manifest, "unet", device="cpu", cache=False) as engine:
        noise = engine.run(feed)["noise_pred"]
    unet = bundle_checkpoint(origin).networks["unet"].module()
    with torch.no_grad():
        wanted = unet(**{name: torch.from_numpy(array) for name, array in feed.items()}).sample.numpy()
    error = np.linalg.norm(noise - wanted) / np.linalg.norm(wanted)
    assert error < (1e-5 if precision == "fp32" else 0.2)
    runner = EngineRunner(folder, 1, device="cpu")
    runner.begin("denoiser")
    assert runner.turn("step", WORK, 1)


def test_pytorch_without_control_is_the_base_model(bundle: Path) -> None:
    runner = TorchRunner(bundle, torch.get_num_threads(), device="cpu", dtype="float32", controlled=False)
    runner.begin("denoiser")
    feed = {name: torch.from_numpy(a) for name, a in step_feed(bundle, WORK).items() if "control" not in name}
    with torch.no_grad():
        wanted = bundle_checkpoint(bundle).networks["unet"].module()(**feed).sample
    np.testing.assert_allclose(runner._step(WORK)(), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_pytorch_steps_are_those_of_the_engine(bundle: Path) -> None:
    runner = TorchRunner(bundle, torch.get_num_threads(), device="cpu", dtype="bfloat16")
    runner.begin("denoiser")
    with open_engine(bundle, read_manifest(bundle), "unet", device="cpu") as engine:
        wanted = engine.run(step_feed(bundle, WORK))["noise_pred"]
    noise = runner._step(WORK)()
    assert np.linalg.norm(noise - wanted) / np.linalg.norm(wanted) < 0.05


def test_the_saved_pipeline_makes_the_reference_image(bundle: Path, stock: Path) -> None:
    runner = PipelineRunner(bundle, torch.get_num_threads(), device="cpu", dtype="float32", stock=str(stock))
    assert set(runner.begin("pipeline")) == {"import", "load"}
    arguments = image_arguments(read_manifest(bundle), WORK)
    wanted = reference_pipeline(bundle_checkpoint(bundle))(**arguments)
    np.testing.assert_allclose(runner.reference(**arguments).latents, wanted.latents, rtol=1e-5, atol=1e-5)
    (seconds,) = runner.turn("image", WORK, 1)
    assert list(seconds) == ["denoiser", "decode", "rest"]
    assert min(seconds.values()) > 0


def test_the_saved_tokenizers_have_the_name_that_every_transformers_knows(
    shapes_bundle: Path, tmp_path: Path
) -> None:
    """optimum's exporter reads the directory with transformers 4."""
    save_stock_pipeline(shapes_bundle, tmp_path / "stock")
    index = json.loads((tmp_path / "stock" / "model_index.json").read_text())
    for name in ("tokenizer", "tokenizer_2"):
        assert index[name] == ["transformers", "PreTrainedTokenizerFast"]
        config = json.loads((tmp_path / "stock" / name / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_controlnet_runs_steps_and_images(bundle: Path, stock: Path) -> None:
    runner = ControlNetRunner(
        bundle, torch.get_num_threads(), device="cpu", dtype="float32", stock=str(stock)
    )
    runner.begin("pipeline")
    steps = runner.turn("step", WORK, 3)
    assert len(steps) == 3
    assert all(seconds["step"] > 0 for seconds in steps)
    (seconds,) = runner.turn("image", WORK, 1)
    assert seconds["controlnet"] > 0
