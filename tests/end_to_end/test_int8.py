"""int8 bundles: near float32 on every variant, in the manifest, and good enough to draw with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from controlnext.bundle.manifest import Quantization
from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from controlnext.errors import InputError
from controlnext.evaluation.calibration_data import read_examples
from controlnext.evaluation.inputs import graph_feeds
from controlnext.export.quantization.config import DEFAULT
from controlnext.families import get_family
from controlnext.weights import bundle_checkpoint
from support.cli import Cli, assert_refused
from support.exports import CALIBRATION_STEPS, export_tiny, load_tiny
from support.recipe import FAMILY_VARIANTS


def _plan(bundle: Path) -> tuple[str, Quantization]:
    manifest = read_manifest(bundle)
    folder = get_family(manifest.family).denoiser
    plan = manifest.graphs[folder].quantization
    assert plan is not None
    return folder, plan


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_int8_is_near_float32(variant: str, tiny: Callable[..., Path]) -> None:
    """The denoiser on inputs and at sizes that it was not calibrated on."""
    plain, int8 = tiny(variant), tiny(variant, "int8")
    folder, _ = _plan(int8)
    feeds = graph_feeds(plain, read_manifest(plain))[folder]
    outputs = []
    for bundle in (plain, int8):
        with open_engine(bundle, read_manifest(bundle), folder, cache=False) as engine:
            outputs.append([engine.run(feed)["noise_pred"] for feed in feeds])
    for wanted, found in zip(*outputs, strict=True):
        # the worst seen is 0.06; these networks have few channels, over which errors do not average out
        assert np.linalg.norm(found - wanted) <= 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_the_manifest_tells_what_was_decided(variant: str, tiny: Callable[..., Path]) -> None:
    """Layers in the plan are int8 in the graph, and no others; the plan keeps to its limits."""
    bundle = tiny(variant, "int8")
    folder, plan = _plan(bundle)
    graph = ir.load(bundle / folder / "model.onnx").graph
    rounded = {str(node.name).partition(".input/")[0] for node in graph if node.op_type == "QuantizeLinear"}
    assert {name for name in rounded if ".output/" not in name} == plan.layers.keys()
    assert not plan.layers.keys() & plan.left_out.keys()
    assert plan.float_share <= DEFAULT.float_share
    assert plan.expected_error <= DEFAULT.target or plan.float_share > DEFAULT.free_share
    assert plan.steps == 2 * CALIBRATION_STEPS + 1
    kept = {str(layer.name) for layer in graph if layer.op_type in ("Conv", "MatMul")}
    assert plan.layers.keys() | plan.left_out.keys() <= kept


def test_pytorch_gets_the_weights_of_an_int8_bundle(tiny: Callable[..., Path]) -> None:
    """Under the same names, in the same shapes, within half a step of each channel's grid."""
    plain, int8 = (bundle_checkpoint(tiny("sdxl", precision)) for precision in ("fp32", "int8"))
    for name, network in plain.networks.items():
        other = int8.networks[name]
        assert set(network.tensors) == set(other.tensors)
        for tensor in network.tensors:
            wanted, found = network.tensors[tensor].float(), other.tensors[tensor].float()
            assert wanted.shape == found.shape
            step = wanted.abs().amax() / 127
            assert (wanted - found).abs().amax() <= 0.51 * step


def test_verify_reads_an_int8_bundle(tiny: Callable[..., Path], cli: Cli) -> None:
    """Against PyTorch with the int8 bundle's own weights: activations alone are rounded."""
    done = cli("verify", tiny("sd15", "int8"), "--json")
    assert done.status == 0, done.err
    (row,) = [row for row in json.loads(done.out)["parity"] if row["name"] == "unet: noise_pred"]
    assert 1e-4 < row["value"] <= row["limit"]


@pytest.mark.export
def test_float16_is_for_what_int8_leaves_out(
    tiny: Callable[..., Path], tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """An int8 bundle for GPUs: float16 between the int8 layers, by decisions that were made before."""
    _, plan = _plan(tiny("sd15", "int8"))
    checkpoint = tiny_checkpoint("sd15")
    export_tiny("sd15", checkpoint, "int8", tmp_path / "bundle", compute="fp16", calibrated=plan)
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.graphs["unet"].quantization == plan
    assert (manifest.graphs["unet"].precision, manifest.graphs["unet"].compute) == ("int8", "fp16")
    graph = ir.load(tmp_path / "bundle" / "unet" / "model.onnx").graph
    steps = {node.inputs[1].dtype for node in graph if node.op_type == "QuantizeLinear"}
    assert ir.DataType.FLOAT16 in steps


def test_int8_needs_sampling_runs(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from controlnext.export import export_bundle

    with pytest.raises(InputError, match="calibrated on sampling runs"):
        export_bundle(load_tiny("sd15", tiny_checkpoint("sd15")), "int8", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_examples_are_images_with_prompts(tmp_path: Path) -> None:
    for name, text in (("b", "a house\n"), ("a", "a tree")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    assert [example.prompt for example in read_examples(tmp_path)] == ["a tree", "a house"]


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "has no image"), (("a.png",), "no prompt for"), (("a.txt",), "has no image")],
)
def test_a_calibration_folder_that_is_no_use_is_refused(
    files: tuple[str, ...], message: str, tmp_path: Path, cli: Cli
) -> None:
    for name in files:
        if name.endswith("png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        else:
            (tmp_path / name).write_text("a prompt")
    options = f"--calibration={tmp_path}", f"--output={tmp_path / 'x'}"
    assert_refused(cli("export", "--model=sdxl", "--precision=int8", *options), message)


@pytest.mark.parametrize("option", ["--compute=fp16", "--calibration=."])
def test_options_of_int8_need_int8(option: str, tmp_path: Path, cli: Cli) -> None:
    done = cli("export", "--model=sdxl", "--precision=fp16", option, f"--output={tmp_path / 'x'}")
    assert_refused(done, "require --precision int8")
