"""On a machine with an NVIDIA GPU: the libraries themselves. Elsewhere skipped, with what is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines import Engine, open_engine
from controlnext.engines.built import usable_backends
from controlnext.engines.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import find_gpu
from controlnext.errors import InputError, WorkError
from controlnext.evaluation.inputs import graph_feeds
from controlnext.families import PER_STEP_INPUTS
from controlnext.runtime import Pipeline
from controlnext.types import Precision
from support.cli import Cli
from support.recipe import VARIANTS

GPU = find_gpu()


def _missing(name: str) -> str:
    """Return what a test of this backend lacks here; empty if it can run."""
    if GPU is None:
        return "needs an NVIDIA GPU and its driver"
    if name == "onnxruntime":
        there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return "" if there else 'needs onnxruntime-gpu: pip install "controlnext[gpu]"'
    flavor = FLAVORS[name]
    if importlib.util.find_spec(flavor.module) is None:
        return f'needs {flavor.title}: pip install "controlnext[{flavor.extra}]"'
    if flavor.ahead_of_time and GPU.architecture not in flavor.architectures():
        return f"needs a GPU that {flavor.title} supports; this one is a {GPU.name} ({GPU.architecture})"
    return ""


def _on(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.skipif(bool(_missing(name)), reason=_missing(name) or "-"))


TRT = {cls.name: cls for cls in (TensorRtBackend, TensorRtRtxBackend)}
BUILT = [_on(name) for name in FLAVORS]
ALL = [_on("onnxruntime"), *BUILT]


def _bundle(original: Path, folder: Path, backend: str, cli: Cli, *options: object) -> Path:
    """A copy with engines for this backend, if it needs any."""
    bundle = shutil.copytree(original, folder / "bundle")
    if backend in FLAVORS:
        done = cli("build", bundle, "--backend", backend, *options, "--json")
        assert done.status == 0, done.err
    return bundle


def _denoiser(bundle: Path, backend: str) -> tuple[Engine, dict[str, np.ndarray]]:
    """It, on the GPU, and inputs that it takes."""
    manifest = read_manifest(bundle)
    profiles = [built.profiles for built in usable_backends(bundle, manifest).values()]
    engine = open_engine(bundle, manifest, "unet", backend, "cuda:0")
    return engine, dict(graph_feeds(bundle, manifest, profiles)["unet"][1])


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ALL)
def test_parity_with_pytorch(
    backend: str, variant: str, precision: str, tiny: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    """Every graph and a sampling run are as near to PyTorch as on the processor."""
    bundle = _bundle(tiny(variant, precision), tmp_path, backend, cli)
    done = cli("verify", bundle, "--json")
    assert done.status == 0, done.err
    rows = [row["name"] for row in json.loads(done.out)["parity"]]
    prefix = "" if backend == "onnxruntime" else f"{backend}: "
    assert f"{prefix}vae_decoder: sample" in rows


@pytest.mark.parametrize("backend", ALL)
def test_the_trained_model_draws_the_same(
    backend: str, shapes_bundle_fp16: Path, tmp_path: Path, cli: Cli
) -> None:
    bundle = _bundle(shapes_bundle_fp16, tmp_path, backend, cli, "--height=128", "--width=128", "--batch=1")
    image = np.zeros((128, 128, 3), np.uint8)
    image[32:96, 32:96] = 255
    images = []
    for name, device in (("onnxruntime", "cpu"), (backend, "cuda:0")):
        with Pipeline.load(bundle, name, device) as pipe:
            assert pipe.backend.startswith(f"{name} on {device}")
            asked = {"control_image": image, "num_inference_steps": 8, "guidance_scale": 3.0}
            images.append(pipe("a red circle on blue", **asked, output_type="np").images)
    error = np.mean(np.square(images[0] - images[1]))
    assert -10 * np.log10(error) > 40


@pytest.mark.parametrize("backend", ALL)
def test_inputs_that_stay_on_the_gpu(
    backend: str, tiny: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    """Give what sending everything gives, with what was replaced in between."""
    engine, feed = _denoiser(_bundle(tiny("sdxl", "fp16"), tmp_path, backend, cli), backend)
    with engine:
        changing = {name: feed.pop(name) for name in PER_STEP_INPUTS}
        for scale in (1.0, 0.5):
            everything = {**feed, "control_scale": feed["control_scale"] * np.float32(scale)}
            bound = engine.bind(everything)
            for step in range(4):
                changing["sample"] = changing["sample"] * np.float32(0.9)
                changing["timestep"] = np.full_like(changing["timestep"], 900 - 100 * step)
                given = bound.run(changing)["noise_pred"]
                alone = engine.run({**everything, **changing})["noise_pred"]
                np.testing.assert_allclose(given, alone, rtol=1e-3, atol=1e-3 * np.abs(alone).max())


@pytest.mark.parametrize("backend", BUILT)
def test_cuda_graphs_change_nothing(
    backend: str, tiny: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    """Runs of two sizes and several numbers of rows, that come one after the other and that take turns."""
    bundle = _bundle(tiny("sdxl", "fp16"), tmp_path, backend, cli)
    manifest = read_manifest(bundle)
    profiles = [built.profiles for built in usable_backends(bundle, manifest).values()]
    small, large = graph_feeds(bundle, manifest, profiles)["unet"]
    row = {name: array[:1] for name, array in small.items()}
    feeds = [row, *[small, small, large, large] * 2, *[row, small, large] * 3]
    results = []
    for graphs in (True, False):
        with TRT[backend](graphs=graphs).open(bundle, manifest, "unet") as engine:
            assert len(small["sample"]) <= engine.most_rows
            results.append([engine.run(feed)["noise_pred"] for feed in feeds])
    for with_graph, without in zip(*results, strict=True):
        np.testing.assert_allclose(with_graph, without, rtol=1e-3, atol=1e-3 * np.abs(without).max())


@pytest.mark.parametrize("backend", BUILT)
def test_memory_comes_back_and_other_sizes_are_refused(
    backend: str, tiny: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    from cuda.bindings import runtime

    bundle = _bundle(tiny("sdxl", "fp16"), tmp_path, backend, cli)
    free = []
    for _ in range(4):
        engine, feed = _denoiser(bundle, backend)
        with engine:
            engine.run(feed)
            wide = {**feed, "sample": np.zeros((2, 4, 1024, 1024), np.float32)}
            wide["control_image"] = np.zeros((1, 3, 8192, 8192), np.float32)
            with pytest.raises(InputError, match="but the engine was built for"):
                engine.run(wide)
        free.append(runtime.cudaMemGetInfo()[1])
    # the first one also starts the library
    assert free[1] - free[-1] < 1 << 20


@pytest.fixture
def cuda() -> Iterator[Any]:
    from controlnext.engines.tensorrt.cuda import Cuda

    with Cuda(0, "rtx") as opened:
        yield opened


@pytest.mark.skipif(GPU is None, reason="needs an NVIDIA GPU and its driver")
def test_arrays_come_back_from_the_gpu(cuda: Any) -> None:
    array = np.arange(1 << 20, dtype=np.float32)
    address = cuda.allocate(array.nbytes)
    cuda.upload(array, address)
    back = np.empty_like(array)
    cuda.download(address, back)
    cuda.synchronize()
    np.testing.assert_array_equal(back, array)
    cuda.free(address)
    with pytest.raises(WorkError, match="cudaMalloc: out of memory"):
        cuda.allocate(1 << 50)
