"""A checkpoint out of a finished bundle equals the one that was exported."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import Graph, Manifest, write_manifest
from controlnext.errors import BundleError
from controlnext.families import ControlSpec, Family, GraphSpec, get_family
from controlnext.models.control_module import ControlModule
from controlnext.weights import Checkpoint, NetworkWeights, bundle_checkpoint, load_checkpoint
from controlnext.weights.bundle import _network
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import empty_module, shapes_of
from controlnext.weights.shipped import shipped_config
from support.recipe import numbers
from support.weights_models import SDXL


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


def test_what_no_output_depends_on_is_zero() -> None:
    """A text encoder's last layer and last norm, where the layer before is asked for."""
    network = SDXL.networks["text_encoder"]
    config = {**shipped_config(SDXL, network), "hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
    shapes = shapes_of(empty_module(network, config))
    found = {
        name: LazyTensor.from_tensor(torch.ones(shape))
        for name, shape in shapes.items()
        if "layers.1." not in name
    }
    weights = _network(Path("bundle"), "text_encoder", network, config, found)
    assert list(weights.tensors) == list(shapes)
    assert all(bool((tensor == ("layers.1." not in name)).all()) for name, tensor in weights.tensors.items())
    weights.module()


def test_a_network_without_any_tensors_is_an_error(tiny_bundle: Path) -> None:
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


PARTS = pytest.mark.usefixtures("_parts_of_a_bundle")


@pytest.fixture
def _parts_of_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests that lack what the tests of single networks do not need."""
    monkeypatch.setattr("controlnext.bundle.reader.check_manifest", lambda _manifest: None)


def make_checkpoint(family: Family, variant: str, controls: list[ControlSpec], **configs: Any) -> Checkpoint:
    """Control modules, and those of the family's networks that are named, full of small random numbers."""
    networks = {}
    for seed, (name, config) in enumerate(configs.items()):
        module = empty_module(family.networks[name], config)
        networks[name] = NetworkWeights(family.networks[name], config, random_state(module, seed))
    for index, spec in enumerate(controls):
        name = "control" if index == 0 else f"control_{index + 1}"
        networks[name] = NetworkWeights(None, asdict(spec), random_state(ControlModule(spec), 10 + index))
    return Checkpoint(family, family.variant(variant), networks, {}, {"shift": 3.0}, {}, [], False)


def random_state(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dict of random numbers, in the module's order."""
    shapes = shapes_of(module)
    values = numbers(shapes, seed)
    return {name: values[name] for name in shapes}


def write_weights(folder: Path, checkpoint: Checkpoint) -> Path:
    """A bundle whose graphs have the weights of an export, under its names, and no operators."""
    graphs = {spec.name: Graph(spec.network, "fp32", [], []) for spec in checkpoint.graphs}
    for spec in checkpoint.graphs:
        named = {name: ir.tensor(tensor.numpy(), name=name) for name, tensor in in_graph(checkpoint, spec)}
        values = [
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            for name, tensor in named.items()
        ]
        graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23}, name=spec.name)
        (folder / spec.name).mkdir(parents=True)
        ir.save(ir.Model(graph, ir_version=10), folder / spec.name / "model.onnx")
    for name in ("scheduler/scheduler_config.json", "tokenizer_3/tokenizer.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text('{"shift": 3.0}')
    configs = {name: network.config for name, network in checkpoint.networks.items()}
    names = (checkpoint.family.name, checkpoint.variant.name, "fp32")
    write_manifest(folder, Manifest(1, *names, graphs, configs, {}, [], {}, list_files(folder)))
    return folder


def in_graph(checkpoint: Checkpoint, spec: GraphSpec) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of one graph: half of a VAE's in each, one of two names that a tensor goes by."""
    if spec.wrapper == "denoiser":
        for network in (name for name, part in checkpoint.networks.items() if part.spec is None):
            for name, tensor in checkpoint.networks[network].tensors.items():
                yield f"{network}.{name}", tensor
    elif spec.network in checkpoint.networks:
        for name, tensor in checkpoint.networks[spec.network].tensors.items():
            half = "vae_encoder" if "encoder." in name else "vae_decoder"
            if name != "shared.weight" and (spec.network != "vae" or half == spec.name):
                yield f"network.{name}", tensor


def check_equal(after: Checkpoint, before: Checkpoint) -> None:
    assert list(after.networks) == list(before.networks)
    for name, network in before.networks.items():
        assert list(after.networks[name].tensors) == list(network.tensors)
        for key, tensor in network.tensors.items():
            assert torch.equal(after.networks[name].tensors[key], tensor)
    assert after.variant == before.variant


@PARTS
def test_every_control_of_a_bundle_comes_back_with_its_own_widths(tmp_path: Path) -> None:
    """Also the tenth and eleventh, which the manifest sorts before the second."""
    specs = [ControlSpec(16, (8, 8, 16), stages=(8 * (1 + index), 16)) for index in range(11)]
    before = make_checkpoint(SDXL, "sdxl", specs)
    after = bundle_checkpoint(write_weights(tmp_path / "bundle", before))
    check_equal(after, before)
    assert [network.config["stages"][0] for network in after.controls] == [8 * n for n in range(1, 12)]
    assert len(after.graphs[-1].inputs) == len(before.graphs[-1].inputs)


@PARTS
def test_a_video_vae_comes_back_from_its_two_graphs(tmp_path: Path) -> None:
    family = get_family("svd")
    vae = {"block_out_channels": [32], "down_block_types": ["DownEncoderBlock2D"], "layers_per_block": 1}
    before = make_checkpoint(family, "v1", [family.variant("v1").control], vae=vae)
    after = bundle_checkpoint(write_weights(tmp_path / "bundle", before))
    check_equal(after, before)
    assert "decoder.time_conv_out.weight" in after.networks["vae"].tensors
    assert after.networks["control"].module().scale == before.networks["control"].tensors["scale"]


@PARTS
def test_the_two_names_of_an_embedding_are_one_tensor(tmp_path: Path) -> None:
    """T5's state dict has its embedding twice, its graph once."""
    family = get_family("sd3")
    t5 = {"vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    before = make_checkpoint(family, "sd3", [ControlSpec(16)], text_encoder_3=t5)
    tensors = before.networks["text_encoder_3"].tensors
    tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    after = bundle_checkpoint(write_weights(tmp_path / "bundle", before))
    check_equal(after, before)
    assert after.tokenizers.keys() == {"tokenizer_3"}
