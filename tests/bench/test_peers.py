"""Runners of other programs: what they are asked for, and the reason where a package is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from controlnext.bench.engines import GraphRunner
from controlnext.bench.messages import Work
from controlnext.bench.peers import DeepCacheRunner, OpenVinoRunner
from controlnext.bench.prepare import clip_name, export_uncontrolled, save_single_file
from controlnext.bench.requests import step_feed
from controlnext.bench.sdcpp import SdcppRunner
from controlnext.bench.stock import PipelineRunner
from controlnext.errors import MissingDependencyError, WorkError
from controlnext.weights import bundle_checkpoint
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import canonical
from controlnext.weights.original import from_original
from controlnext.weights.shipped import original_layout, section

WORK = Work(height=64, width=64, steps=3, cache_interval=2)
STAND_IN = """
import json

class StableDiffusion:
    def __init__(self, **options):
        self.options = options

    def generate_image(self, **asked):
        with open(self.options["model_path"], "a") as file:
            file.write(json.dumps([self.options["wtype"], asked["sample_steps"], asked["cfg_scale"]]) + "\\n")
        print("the library prints on stdout")
"""


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_deepcache_runs_around_the_stock_pipeline(
    bundle: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on for its images alone, with the interval that was asked for."""
    told: list[Any] = []

    class Helper:
        def __init__(self, pipe: Any) -> None:
            assert pipe.unet is not None
            self.set_params = lambda **given: told.append(given)
            self.enable, self.disable = (lambda: told.append("on")), (lambda: told.append("off"))

    _module(monkeypatch, "DeepCache", DeepCacheSDHelper=Helper)
    runner = DeepCacheRunner(bundle, torch.get_num_threads(), device="cpu", dtype="float32", stock=str(stock))
    runner.begin("pipeline")
    (seconds,) = runner.turn("image", WORK, 1)
    assert seconds["denoiser"] > 0
    assert told == [{"cache_interval": 2, "cache_branch_id": 0}, "on", "off"]
    assert len(runner.clock.calls["denoiser"]) == WORK.steps


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("DeepCache", lambda: DeepCacheRunner(Path(), 1, device="cpu", dtype="float32", stock="")),
        ("openvino", lambda: OpenVinoRunner(Path(), 1, graph="", dtype="f32")),
    ],
)
def test_a_missing_package_is_named(
    module: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=f"is not installed; run pip install {module}"):
        make().begin("denoiser")


def test_openvino_gets_the_inputs_of_onnx_runtime(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shapes fixed to them."""
    export_uncontrolled(bundle, tmp_path / "plain")
    graph = str(tmp_path / "plain" / "unet" / "model.onnx")
    by_onnx = GraphRunner(tmp_path / "plain", 1, graph=graph, device="cpu")
    by_onnx.begin("denoiser")
    (seconds,) = by_onnx.turn("step", WORK, 1)
    assert seconds["step"] > 0
    names = [spec.name for spec in by_onnx.session.get_inputs()]
    ranks = {"sample": 4, "encoder_hidden_states": 3, "timestep": 1}
    shapes: dict[str, list[int]] = {}
    runs: list[dict[str, np.ndarray]] = []
    ports = [
        SimpleNamespace(
            any_name=name,
            partial_shape=SimpleNamespace(rank=SimpleNamespace(get_length=lambda rank=ranks[name]: rank)),
            element_type=SimpleNamespace(to_dtype=lambda: np.dtype(np.float32)),
        )
        for name in names
    ]
    model = SimpleNamespace(inputs=ports, reshape=shapes.update)
    compiled = SimpleNamespace(create_infer_request=lambda: SimpleNamespace(infer=runs.append))
    options: list[Any] = []
    core = SimpleNamespace(
        read_model=lambda _graph: model,
        compile_model=lambda _model, _device, given: options.append(given) or compiled,
    )
    _module(monkeypatch, "openvino", Core=lambda: core, PartialShape=list)
    runner = OpenVinoRunner(tmp_path / "plain", 1, graph=graph, dtype="bf16")
    runner.begin("denoiser")
    runner.turn("step", WORK, 2)
    feed = step_feed(tmp_path / "plain", WORK)
    assert len(runs) == 2
    assert options == [{"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "bf16"}]
    assert shapes == {name: list(array.shape) for name, array in runs[0].items()}
    np.testing.assert_array_equal(runs[0]["sample"], feed["sample"])
    assert runs[0]["timestep"].shape == (1,)


def test_stable_diffusion_cpp_runs_in_an_environment_of_its_own(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stable_diffusion_cpp.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        "controlnext.bench.requests.image_arguments", lambda *_: {"prompt": "a circle", "seed": 0}
    )
    file = tmp_path / "told"
    runner = SdcppRunner(bundle, 1, python=sys.executable, file=str(file), dtype="q8_0")
    assert set(runner.begin("pipeline")) == {"import", "load"}
    assert len(runner.turn("image", WORK, 2)) == 2
    assert file.read_text().splitlines() == ['["q8_0", 3, 7.5]'] * 2
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "nowhere"))
    without = SdcppRunner(bundle, 1, python=sys.executable, file=str(file), dtype="f16")
    with pytest.raises(WorkError, match="has the package stable-diffusion-cpp-python"):
        without.begin("pipeline")
    with pytest.raises(WorkError, match="/nowhere/python cannot be run"):
        SdcppRunner(bundle, 1, python="/nowhere/python", file="", dtype="f16").begin("pipeline")


def test_the_single_file_has_the_weights_under_their_original_names(bundle: Path, tmp_path: Path) -> None:
    """As published ones: CLIP with its prefix, the VAE's attention as convolutions."""
    save_single_file(bundle, tmp_path / "original.safetensors")
    tensors = load_file(tmp_path / "original.safetensors")
    assert clip_name("final_layer_norm.weight") == "text_model.final_layer_norm.weight"
    assert clip_name("text_model.final_layer_norm.weight") == "text_model.final_layer_norm.weight"
    assert tensors["first_stage_model.decoder.mid.attn_1.q.weight"].ndim == 4
    found = {name: LazyTensor.from_tensor(tensor) for name, tensor in tensors.items()}
    checkpoint = bundle_checkpoint(bundle)
    for name in ("unet", "vae"):
        weights = checkpoint.networks[name]
        layout = original_layout(checkpoint.family, name, weights.config)
        read = from_original(section(checkpoint.family, name, found), layout, weights.tensors)
        by_name = {canonical(key): tensor for key, tensor in read.items()}
        for key, wanted in weights.tensors.items():
            tensor = by_name[canonical(key)].read()
            torch.testing.assert_close(tensor.float().reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-4)


def test_the_stock_pipeline_without_a_tiny_vae_says_so(bundle: Path, stock: Path) -> None:
    runner = PipelineRunner(bundle, torch.get_num_threads(), device="cpu", dtype="float32", stock=str(stock))
    runner.begin("pipeline")
    with pytest.raises(WorkError, match="has no tiny VAE; export it with `preview_vae`"):
        runner.turn("image", Work(height=64, width=64, tiny=True), 1)
