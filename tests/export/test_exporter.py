"""The exported graphs give what PyTorch gives, at sizes they were not traced with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.format import check_file
from controlnext.bundle.reader import read_manifest
from controlnext.errors import CheckpointError, InputError
from controlnext.export import export_bundle
from controlnext.export.adapters import wrap
from controlnext.families import get_family
from controlnext.models.cross_normalization import CrossNormalization
from controlnext.weights import load_checkpoint
from support.exports import load_tiny
from support.recipe import VARIANTS

FAMILY = get_family("sdxl")
SIZES = (
    {"batch": 2, "control_batch": 1, "height": 16, "width": 16, "sequence": 77, "frames": 3},
    {"batch": 1, "control_batch": 1, "height": 17, "width": 9, "sequence": 154, "frames": 1},
    {"batch": 4, "control_batch": 4, "height": 12, "width": 7, "sequence": 5, "frames": 2},
    # not smaller: SVD's tiny networks would normalize groups of two numbers, a matter of rounding
    {"batch": 3, "control_batch": 1, "height": 3, "width": 9, "sequence": 1, "frames": 7},
)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint_dir: Path):
    return load_tiny("sdxl", tiny_checkpoint_dir)


def feeds(tensors, sizes):
    rng = np.random.default_rng(0)
    feed = {t.name: rng.standard_normal(t.shape_at(sizes), dtype=np.float32) for t in tensors}
    for name, size in (("timestep", 300), ("time_ids", 500)):
        if name in feed:
            feed[name] = np.abs(feed[name]) * size
    return feed


EVERY_GRAPH = [
    (variant, precision)
    for variant in VARIANTS
    for precision in ("fp32", "fp16")
    # the two releases of a family have all but the injection in common
    if precision == "fp32" or variant not in ("sd15-mid", "svd-v1")
]


@pytest.mark.parametrize(("variant", "precision"), EVERY_GRAPH)
def test_graphs_equal_pytorch_at_every_size(tiny, tiny_checkpoint, variant, precision):
    """At sizes, batches and frame counts that they were not traced with; pooling is PyTorch's own there."""
    bundle, checkpoint = tiny(variant, precision), load_tiny(variant, tiny_checkpoint(variant))
    networks, limit = checkpoint.networks, {"fp32": 1e-5, "fp16": 4e-3}[precision]
    manifest = read_manifest(bundle)
    for spec in checkpoint.graphs:
        normalization = CrossNormalization(checkpoint.variant.injection)
        controls = [control.module() for control in checkpoint.controls]
        module = wrap(spec, networks[spec.network].module(), controls, normalization)
        session = ort.InferenceSession(bundle / spec.name / "model.onnx")
        # rounding does not depend on sizes
        for sizes in SIZES if precision == "fp32" else SIZES[1:3]:
            feed = feeds([entry.spec() for entry in manifest.graphs[spec.name].inputs], sizes)
            with torch.no_grad():
                want = module(*map(torch.from_numpy, feed.values())).numpy()
            (got,) = session.run([spec.outputs[0].name], feed)
            assert got.shape == want.shape
            assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want), (spec.name, sizes)


def test_one_control_image_serves_the_whole_guided_batch(tiny_bundle):
    """The graph's control branch has the batch of the image, not that of the latents."""
    inputs = [entry.spec() for entry in read_manifest(tiny_bundle).graphs["unet"].inputs]
    feed = feeds(inputs, {"batch": 2, "control_batch": 1, "height": 16, "width": 16, "sequence": 7})
    feed["timestep"][:] = 500
    session = ort.InferenceSession(tiny_bundle / "unet" / "model.onnx")
    (one,) = session.run(["noise_pred"], feed)
    (both,) = session.run(["noise_pred"], feed | {"control_image": feed["control_image"].repeat(2, 0)})
    np.testing.assert_allclose(one, both, rtol=0, atol=1e-5)
    model = onnx.load(tiny_bundle / "unet" / "model.onnx", load_external_data=False)
    first = next(node for node in model.graph.node if node.name == "control.embedding.0/Conv")
    assert first.input[0] == "control_image"


def test_projections_between_maps_and_tokens_are_products(tiny):
    """Also where the checkpoint has them as 1 x 1 convolutions: in int8 a convolution's output is rounded."""
    assert "use_linear_projection" in get_family("sd15").networks["unet"].required
    model = onnx.load(tiny("sd15", "fp32") / "unet" / "model.onnx", load_external_data=False)
    names = {node.name.rpartition(".")[2] for node in model.graph.node if ".proj_" in node.name}
    assert {"proj_in/MatMul", "proj_out/MatMul"} <= names
    assert not {"proj_in/Conv", "proj_out/Conv"} & names


def test_scale_zero_is_the_uncontrolled_model(tiny_bundle, checkpoint):
    inputs = [entry.spec() for entry in read_manifest(tiny_bundle).graphs["unet"].inputs]
    feed = feeds(inputs, SIZES[0])
    feed["control_scale"][:] = 0
    (got,) = ort.InferenceSession(tiny_bundle / "unet" / "model.onnx").run(["noise_pred"], feed)
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    added = {name: tensors[name] for name in ("text_embeds", "time_ids")}
    with torch.no_grad():
        unet = checkpoint.networks["unet"].module()
        want = unet(
            tensors["sample"], tensors["timestep"], tensors["encoder_hidden_states"], added_cond_kwargs=added
        ).sample.numpy()
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def test_float16_graph_computes_in_float16_and_keeps_the_vae(tiny_bundle_fp16):
    """All large weights of the denoiser are float16; this VAE's configuration says that it overflows."""
    manifest = read_manifest(tiny_bundle_fp16)
    assert {f: g.precision for f, g in manifest.graphs.items()} == {
        "unet": "fp16",
        "vae_decoder": "fp32",
        "vae_encoder": "fp32",
    }
    model = onnx.load(tiny_bundle_fp16 / "unet" / "model.onnx", load_external_data=False)
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 512]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}
    onnx.checker.check_model(tiny_bundle_fp16 / "unet" / "model.onnx", full_check=True)


def test_weights_keep_their_state_dict_names(tiny_bundle, checkpoint):
    model = onnx.load(tiny_bundle / "unet" / "model.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {f"denoiser.{name}" for name in checkpoint.networks["unet"].tensors} <= names
    assert {f"control.{name}" for name in checkpoint.networks["control"].tensors} <= names


def test_nothing_in_a_bundle_tells_of_the_build_machine(tiny_bundle, tiny_checkpoint_dir):
    root = Path(__file__).parents[2]
    secrets = [str(root), str(tiny_checkpoint_dir), str(Path.home()), ".py"]
    for path in [*tiny_bundle.rglob("*.onnx"), *tiny_bundle.rglob("*.json")]:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path.name


@pytest.mark.export
def test_two_exports_are_byte_identical(tiny, tiny_checkpoint, tmp_path):
    """In another folder, time zone, home and hash seed; by the command, which traces its graphs itself, and
    by the function as all other tests have it, whose graphs are traced once and kept."""
    source, one, other = tiny_checkpoint("sd15"), tiny("sd15", "fp16"), tmp_path / "elsewhere" / "other"
    options = ["export", "--model=sd15", "--precision=fp16", "--no-verify", f"--base={source / 'base'}"]
    options += [f"--control={source / 'control.safetensors'}", f"--output={other}"]
    strange = {"TZ": "Asia/Tokyo", "HOME": str(tmp_path), "USER": "nobody", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "controlnext", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | strange)
    assert done.returncode == 0, done.stderr
    assert (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
    manifest = read_manifest(one)
    assert all(check_file(folder, manifest, name) for folder in (one, other) for name in manifest.files)


def test_unknown_precision_is_refused_before_any_work(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"int4.*accepted: fp32, fp16"):
        export_bundle(checkpoint, "int4", tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.export
def test_weights_that_float16_cannot_hold_are_refused(tmp_path, tiny_checkpoint_dir):
    from safetensors.torch import load_file, save_file

    control = load_file(tiny_checkpoint_dir / "control.safetensors")
    control["mid_convs.1.bias"][0] = 1e6
    save_file(control, tmp_path / "control.safetensors")
    large = load_checkpoint(
        FAMILY, base=str(tiny_checkpoint_dir / "base"), control=str(tmp_path / "control.safetensors")
    )
    with pytest.raises(CheckpointError, match=r"mid_convs\.1\.bias.*fp32"):
        export_bundle(large, "fp16", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["control.safetensors"]
