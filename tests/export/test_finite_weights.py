"""Weights that are not finite are refused by name before anything is traced, whichever file they are in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.export import export_bundle
from controlnext.export.writer import attach_weights
from controlnext.families import get_family
from controlnext.weights import load_checkpoint
from support.exports import once
from support.prompted import Prompted, write_prompted

FILES = {
    "control": ("control.safetensors", "mid_convs.1.bias", "control: tensor mid_convs.1.bias"),
    "unet": (
        "base/unet/diffusion_pytorch_model.safetensors",
        "conv_out.weight",
        "unet: tensor conv_out.weight",
    ),
    "vae": (
        "base/vae/diffusion_pytorch_model.safetensors",
        "decoder.conv_in.bias",
        "vae: tensor decoder.conv_in.bias",
    ),
    "text encoder": (
        "base/text_encoder/model.safetensors",
        "",
        "text_encoder: tensor ",
    ),
    "image encoder": (
        "image_encoder/model.safetensors",
        "visual_projection.weight",
        "image_encoder: tensor visual_projection.weight",
    ),
    "IP-Adapter": ("plus.safetensors", "image_proj.norm_out.weight", "plus.safetensors: tensor "),
    "LoRA": ("a.safetensors", "", "a.safetensors: tensor "),
}
"""A file of each kind, a tensor in it ("": the first), and how the error begins."""


@pytest.fixture(scope="module")
def model(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Path:
    def make(directory: Path) -> None:
        write_prompted("sd15", tiny_checkpoint, directory)

    return Prompted("sd15", once(shared_folder / "prompted-sd15", make)).directory


@pytest.mark.parametrize(
    ("kind", "value"), [*((kind, float("nan")) for kind in FILES), ("control", -float("inf"))]
)
def test_a_tensor_that_is_not_finite_is_named_before_tracing(
    kind: str, value: float, model: Path, tmp_path: Path
) -> None:
    """A test without the marker ``export`` fails if something is traced."""
    name, tensor, begins = FILES[kind]
    directory = Path(shutil.copytree(model, tmp_path / "model"))
    tensors = load_file(directory / name)
    tensors[tensor or min(tensors)].view(-1)[-1] = value
    save_file(tensors, directory / name)
    with pytest.raises(CheckpointError, match=f"^{begins}.* holds NaN or infinity; get an undamaged copy"):
        export_bundle(_loaded(directory), "fp32", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def _loaded(directory: Path):
    return load_checkpoint(
        get_family("sd15"),
        base=directory / "base",
        control=directory / "control.safetensors",
        lora=[str(directory / "a.safetensors")],
        ip_adapter=[directory / "plus.safetensors"],
    )


def test_random_weights_are_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are finite, and reading them draws billions of numbers."""
    checkpoint = load_checkpoint(get_family("sd15"), random_seed=0)
    monkeypatch.setattr(type(checkpoint), "check_finite", lambda _self: pytest.fail("read"))
    monkeypatch.setattr("controlnext.export.exporter._export_graph", _stop)
    with pytest.raises(RuntimeError, match="traced"):
        export_bundle(checkpoint, "fp32", tmp_path / "bundle")


def _stop(_job: object) -> None:
    raise RuntimeError("traced")


@pytest.mark.parametrize(("largest", "fits"), [(65504.0, True), (65600.0, False), (-1e30, False)])
def test_a_weight_beyond_float16_is_named_and_not_clamped(largest: float, fits: bool) -> None:
    """Constants of a graph, such as masks, are clamped; weights, which are attached later, are not."""
    half = ir.tensor(np.zeros(3, np.float16), name="unet.conv_in.bias")
    value = ir.Value(name="unet.conv_in.bias", type=ir.TensorType(half.dtype), shape=ir.Shape([3]))
    value.const_value = half
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value]), ir_version=10)
    weights = torch.tensor([1.0, largest, 6e-8])
    attach_weights(model, {"unet.conv_in.bias": lambda: weights})
    if fits:
        np.testing.assert_array_equal(value.const_value.numpy(), weights.half().numpy())
        return
    with pytest.raises(CheckpointError, match=r"tensor unet\.conv_in\.bias .* float16 cannot hold"):
        value.const_value.numpy()
