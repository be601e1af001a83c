"""The control module's weights: published layouts, files and folders, refusals that say what was given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from recipe import GOLDEN, numbers
from safetensors.torch import load_file, save_file
from weights_models import SDXL

from controlnext.control import ControlModule
from controlnext.errors import CheckpointError, InputError
from controlnext.registry import ControlSpec
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.control import match_control
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor, held


def published(layout: str) -> dict[str, LazyTensor]:
    """The full-size control module of that layout, without memory for its weights."""
    shapes = json.loads((GOLDEN / "keys" / f"{layout}.json").read_text())
    return {name: held(torch.empty(shape, device="meta")) for name, shape in shapes.items()}


@pytest.fixture
def control(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_checkpoint_dir / "control.safetensors", tmp_path))


@pytest.fixture
def load(tiny_checkpoint_dir: Path):
    def load_control(control: Path, **options: object) -> Checkpoint:
        return load_checkpoint(SDXL, base=tiny_checkpoint_dir / "base", control=control, **options)

    return load_control


def test_the_published_layout_is_accepted_exactly() -> None:
    found = published("sdxl")
    variant, tensors = match_control(found, SDXL, "auto", "controlnet.safetensors")
    assert variant == SDXL.variants["sdxl"]
    assert tensors.keys() == found.keys()


def test_the_narrowed_module_is_rebuilt_with_its_own_widths() -> None:
    spec = ControlSpec(64, embedding=(32, 32, 64), stages=(64, 128), time_channels=(32, 64))
    module = ControlModule(spec)
    found = {name: held(tensor) for name, tensor in module.state_dict().items()}
    variant, _ = match_control(found, SDXL, "auto", "small")
    assert variant.control == spec


@pytest.mark.parametrize(
    ("layout", "title"),
    [
        ("sd15", "the control module of sd15, sdxl or svd v2, which share names and shapes"),
        ("sdxl", "the control module of sd15, sdxl or svd v2, which share names and shapes"),
        ("svd", "the control module of sd15, sdxl or svd v2, which share names and shapes"),
        ("sd15-mid", "the control module of the first SD1.5 release (sd15-mid)"),
        ("svd-v1", "the control module of the first SVD release (svd-v1)"),
    ],
)
def test_every_published_layout_is_recognised(layout: str, title: str) -> None:
    assert looks_like(published(layout)) == title


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet, not a ControlNeXt"),
        ("control_model.input_hint_block.0.weight", "a ControlNet, not a ControlNeXt"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.1.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("down_blocks.0.resnets.0.norm1.weight", "a UNet"),
        ("input_blocks.4.1.proj_in.weight", "a UNet under its original names"),
        ("encoder.conv_in.weight", "a VAE"),
        ("first_stage_model.decoder.mid.block_1.conv1.weight", "a VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text or image encoder"),
        ("image_proj.norm.weight", "an IP-Adapter"),
        ("transformer_blocks.0.attn.add_k_proj.weight", "an SD3 or Flux transformer"),
        ("mystery.weight", "nothing known (1 tensors: mystery.weight ...)"),
    ],
)
def test_other_files_are_recognised_by_their_names(name: str, title: str) -> None:
    assert looks_like([name]) == title


@pytest.mark.parametrize("layout", ["sd15-mid", "svd-v1"])
def test_another_variant_is_refused_by_name(layout: str) -> None:
    with pytest.raises(CheckpointError, match=layout):
        match_control(published(layout), SDXL, "auto", "controlnet.safetensors")


def test_the_base_given_as_control_is_recognised(tiny_checkpoint_dir: Path, load) -> None:
    unet = tiny_checkpoint_dir / "base/unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match="no control module of sdxl: it looks like an SDXL UNet"):
        load(unet)


def test_wrong_tensors_are_listed(control: Path, load) -> None:
    tensors = load_file(control)
    del tensors["down_sample.1.conv.bias"]
    save_file({**tensors, "scale": torch.tensor(1.0)}, control)
    with pytest.raises(
        CheckpointError, match=r"1 missing \(down_sample.1.conv.bias\); 1 unexpected \(scale\)"
    ):
        load(control)


def test_groups_that_do_not_divide_the_widths_are_one_error() -> None:
    spec = {"mid_convs.1.weight": (8, 20, 1, 1), "time_embedding.linear_1.weight": (8, 8)}
    spec |= {f"embedding.{index}.weight": (8, 3, 3, 3) for index in (0, 3, 6)}
    spec |= {f"down_res.{index}.conv1.weight": (20, 8, 3, 3) for index in (0, 1)}
    found = {name: held(torch.empty(shape, device="meta")) for name, shape in spec.items()}
    with pytest.raises(CheckpointError, match="no control module has these widths"):
        match_control(found, SDXL, "auto", "odd")


def test_a_control_of_another_width_than_the_base_is_refused(control: Path, load) -> None:
    tensors = load_file(control)
    shapes = {"mid_convs.1.weight": (48, 256, 1, 1), "mid_convs.1.bias": (48,)}
    save_file({**tensors, **numbers(shapes, 0)}, control)
    with pytest.raises(
        CheckpointError, match="gives 48 channels, the base's unet has 32 where they are injected"
    ):
        load(control)


def test_an_unknown_variant_is_refused(control: Path, load) -> None:
    with pytest.raises(InputError, match="sdxl has no variant 'mid'; accepted: sdxl"):
        load(control, variant="mid")


def test_no_control_is_refused(tiny_checkpoint_dir: Path) -> None:
    with pytest.raises(InputError, match="--control"):
        load_checkpoint(SDXL, base=tiny_checkpoint_dir / "base")


@pytest.mark.parametrize(
    "name",
    [
        "controlnet.safetensors",
        "controlnext.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    ],
)
def test_a_folder_is_searched_for_the_published_names(control: Path, load, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "control"
    folder.mkdir()
    shutil.copy(control, folder / name)
    checkpoint = load(folder)
    assert torch.equal(
        checkpoint.networks["control"].tensors["mid_convs.1.bias"], load_file(control)["mid_convs.1.bias"]
    )
    assert checkpoint.sources[-1].detail == name


@pytest.mark.parametrize("name", ["controlnet.bin", "controlnext.bin"])
def test_pickled_control_modules(control: Path, load, name: str) -> None:
    torch.save(load_file(control), control.with_name(name))
    control.unlink()
    checkpoint = load(control.parent)
    assert checkpoint.sources[-1].detail == name
    assert checkpoint.networks["control"].module()(torch.ones(1, 3, 16, 16), torch.ones(1)).shape == (
        1,
        32,
        2,
        2,
    )


def test_a_folder_without_control_weights_is_refused(load, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights of the control; looked for"):
        load(tmp_path)
