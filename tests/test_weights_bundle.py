"""A checkpoint out of a finished bundle equals the one that was exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from weights_models import SDXL

from controlnext.errors import BundleError
from controlnext.weights import bundle_checkpoint, load_checkpoint
from controlnext.weights.bundle import _network
from controlnext.weights.lazy import held
from controlnext.weights.networks import empty_module, shapes_of
from controlnext.weights.shipped import shipped_config


def test_the_tensors_of_a_float32_bundle_are_the_checkpoints(
    tiny_bundle: Path, tiny_checkpoint_dir: Path
) -> None:
    base, control = tiny_checkpoint_dir / "base", tiny_checkpoint_dir / "control.safetensors"
    before, after = load_checkpoint(SDXL, base=base, control=control), bundle_checkpoint(tiny_bundle)
    assert after.networks.keys() == before.networks.keys()
    for name, network in before.networks.items():
        tensors = after.networks[name].tensors
        assert list(tensors) == list(network.tensors)
        assert all(torch.equal(tensors[key], tensor) for key, tensor in network.tensors.items())
        assert after.networks[name].module().state_dict().keys() == network.tensors.keys()
    assert (after.variant, after.scheduler, after.options) == (
        before.variant,
        before.scheduler,
        before.options,
    )
    assert (after.sources, after.random) == (before.sources, False)


def test_a_float16_bundle_gives_its_own_numbers(tiny_bundle_fp16: Path, tiny_checkpoint_dir: Path) -> None:
    base, control = tiny_checkpoint_dir / "base", tiny_checkpoint_dir / "control.safetensors"
    before, after = load_checkpoint(SDXL, base=base, control=control), bundle_checkpoint(tiny_bundle_fp16)
    name = "mid_block.resnets.0.conv1.weight"
    expected = before.networks["unet"].tensors[name].half()
    assert torch.equal(after.networks["unet"].tensors[name].half(), expected)


def test_what_a_text_encoders_graph_leaves_out_is_zero() -> None:
    """Nothing depends on the last layer and the last norm where the layer before is asked for."""
    network = SDXL.networks["text_encoder"]
    config = {**shipped_config(SDXL, network), "hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
    shapes = shapes_of(empty_module(network, config))
    found = {name: held(torch.ones(shape)) for name, shape in shapes.items() if "layers.1." not in name}
    weights = _network(Path("bundle"), "text_encoder", network, config, found)
    assert list(weights.tensors) == list(shapes)
    assert all(bool((tensor == ("layers.1." not in name)).all()) for name, tensor in weights.tensors.items())
    weights.module()


def test_missing_tensors_of_another_network_are_an_error(tiny_bundle: Path) -> None:
    checkpoint = bundle_checkpoint(tiny_bundle)
    network = checkpoint.networks["vae"]
    with pytest.raises(BundleError, match=r"vae does not fit: \d+ missing .*export the bundle again"):
        _network(tiny_bundle, "vae", network.spec, network.config, {})


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "vae_decoder/model.onnx.data", "scheduler/scheduler_config.json"]
)
def test_a_damaged_file_is_named(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        bundle_checkpoint(bundle)
