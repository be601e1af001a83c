"""Trained UNet tensors that are given: values and increments, names of both kinds, parts of the UNet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnext.cli.sources import parse_settings
from controlnext.errors import CheckpointError, InputError
from controlnext.weights.shipped import original_layout
from support.trained_weights import NAMES, check, load, publish, roles
from support.weights_models import SDXL, rewrite_json


def test_values_take_the_place_of_the_bases(folder: Path, unet, increments) -> None:
    values = {name: unet[name] + tensor for name, tensor in increments.items()}
    save_file(values, folder / "trained.safetensors")
    checkpoint = load(folder, unet_weights=folder / "trained.safetensors")
    check(checkpoint, unet, values)
    assert (checkpoint.sources[-1].role, checkpoint.sources[-1].name) == (
        "unet values",
        "trained.safetensors",
    )


def test_increments_are_added_in_float32(folder: Path, unet, increments) -> None:
    path = folder / "base/unet/diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in unet.items()}, path)
    save_file({name: tensor.half() for name, tensor in increments.items()}, folder / "trained.safetensors")
    checkpoint = load(folder, unet_weights=folder / "trained.safetensors", unet_increments=True)
    sums = {name: unet[name].half().float() + tensor.half().float() for name, tensor in increments.items()}
    check(checkpoint, {name: tensor.half() for name, tensor in unet.items()}, sums)
    assert checkpoint.sources[-1].role == "unet increments"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "unet."])
@pytest.mark.parametrize("original", [False, True])
def test_names_with_and_without_prefix(folder: Path, unet, increments, prefix: str, original: bool) -> None:
    layout = original_layout(SDXL, "unet", load(folder).networks["unet"].config)
    named = {layout(name).name if original else name: tensor for name, tensor in increments.items()}
    save_file({prefix + name: tensor for name, tensor in named.items()}, folder / "trained.safetensors")
    checkpoint = load(folder, unet_weights=folder / "trained.safetensors", unet_increments=True)
    check(checkpoint, unet, {name: unet[name] + tensor for name, tensor in increments.items()})
    assert not original or "input_blocks.1.0.in_layers.2.weight" in named


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [NAMES[0], NAMES[2], "up_blocks.1.resnets.0.norm1.weight"])
@pytest.mark.parametrize("as_increments", [True, False])
def test_tensors_that_are_not_finite_are_named_at_load(
    folder: Path, unet, increments, name: str, value: float, as_increments: bool
) -> None:
    """A matrix in the rows that are looked at, a bias and a gain."""
    tensors = {key: tensor if as_increments else unet[key] + tensor for key, tensor in increments.items()}
    tensors[name] = tensors.get(name, 0 * unet[name]).clone()
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "trained.safetensors")
    options = {"unet_weights": folder / "trained.safetensors", "unet_increments": as_increments}
    message = f"trained.safetensors: tensor {name} holds NaN or infinity; get an undamaged copy"
    with pytest.raises(CheckpointError, match=message):
        load(folder, **options)


def test_increments_that_are_not_finite_further_on_are_named_when_they_are_read(folder: Path, unet) -> None:
    """Of large tensors some rows are looked at; of a sum nobody could tell whose fault it is."""
    name = max(unet, key=lambda key: unet[key].numel())
    increment = torch.zeros_like(unet[name])
    assert increment.numel() > 2**16
    increment[1].view(-1)[0] = torch.inf
    save_file({name: increment}, folder / "trained.safetensors")
    options = {"unet_weights": folder / "trained.safetensors", "unet_increments": True}
    tensors = load(folder, **options).networks["unet"].tensors
    with pytest.raises(CheckpointError, match=f"trained.safetensors: tensor {name} holds NaN or infinity"):
        tensors[name]


@pytest.mark.parametrize(
    ("markers", "metadata", "asked", "ours"),
    [
        (["v_pred"], {}, "prediction_type=v_prediction (by v_pred)", "prediction_type=epsilon"),
        ([], {"modelspec.prediction_type": "v"}, "(by modelspec.prediction_type)", "prediction_type=epsilon"),
        (
            ["ztsnr"],
            {},
            "rescale_betas_zero_snr=true,timestep_spacing=trailing (by ztsnr)",
            "rescale_betas_zero_snr=false,timestep_spacing=leading",
        ),
    ],
)
def test_markers_of_trained_tensors_are_held_against_the_bases_scheduler(
    folder: Path, unet, increments, markers: list[str], metadata: dict[str, str], asked: str, ours: str
) -> None:
    """As of a UNet that was trained to predict v and is published alone."""
    values = {name: unet[name] + tensor for name, tensor in increments.items()}
    file = folder / "trained.safetensors"
    save_file({**values, **dict.fromkeys(markers, torch.zeros(0))}, file, metadata)
    with pytest.raises(CheckpointError) as caught:
        load(folder, unet_weights=file)
    assert str(caught.value).startswith("trained.safetensors asks for ")
    assert f"{asked}, the base's scheduler has {ours}; give `scheduler` " in str(caught.value)
    given = parse_settings([str(caught.value).rpartition("or `scheduler` ")[2].partition(" ")[0]])
    checkpoint = load(folder, unet_weights=file, scheduler=given)
    check(checkpoint, unet, values)
    assert checkpoint.scheduler.items() >= given.items()


def test_markers_of_trained_tensors_that_the_base_agrees_with_pass(folder: Path, unet, increments) -> None:
    values = {name: unet[name] + tensor for name, tensor in increments.items()}
    file = folder / "trained.safetensors"
    save_file(values, file, {"modelspec.prediction_type": "epsilon"})
    check(load(folder, unet_weights=file), unet, values)
    save_file({**values, "edm_mean": torch.zeros(4)}, file)
    with pytest.raises(CheckpointError, match="has the marker edm_mean: it asks for EDM"):
        load(folder, unet_weights=file)


def test_increments_given_as_values_are_noticed(folder: Path, increments) -> None:
    save_file(increments, folder / "trained.safetensors")
    with pytest.raises(CheckpointError, match=r"holds increments, not values.*give `unet_increments`"):
        load(folder, unet_weights=folder / "trained.safetensors")


def test_values_given_as_increments_are_noticed(folder: Path, unet, increments) -> None:
    values = {name: unet[name] + tensor for name, tensor in increments.items()}
    save_file(values, folder / "trained.safetensors")
    with pytest.raises(CheckpointError, match="holds values, not increments"):
        load(folder, unet_weights=folder / "trained.safetensors", unet_increments=True)


def test_increments_without_weights_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="`unet_weights`, which are not given"):
        load(folder, unet_increments=True)


def test_tensors_that_the_unet_does_not_have_are_listed(folder: Path, increments) -> None:
    surplus = {"down_blocks.9.conv.weight": torch.zeros(1), "conv_out.bias": torch.zeros(7)}
    save_file({**increments, **surplus}, folder / "trained.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(folder, unet_weights=folder / "trained.safetensors", unet_increments=True)
    assert "1 unknown (down_blocks.9.conv.weight)" in str(caught.value)
    assert "1 mis-shaped (conv_out.bias [7] for [4])" in str(caught.value)


def test_another_kind_of_file_says_what_it_looks_like(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="it looks like the control module of `family` sd15"):
        load(folder, unet_weights=folder / "control.safetensors")


def test_a_diffusers_unet_folder_serves_as_trained_values(folder: Path, unet) -> None:
    """A whole fine-tuned UNet, as some releases ship it."""
    trained = Path(shutil.copytree(folder / "base/unet", folder / "trained"))
    rewrite_json(trained / "config.json", sample_size=64)
    values = {name: 1.1 * tensor for name, tensor in unet.items()}
    save_file(values, trained / "diffusion_pytorch_model.safetensors")
    check(load(folder, unet_weights=trained), unet, values)


def test_several_files_of_values_for_different_tensors(folder: Path, unet, increments) -> None:
    values = {name: unet[name] + tensor for name, tensor in increments.items()}
    files = [folder / "even.safetensors", folder / "odd.safetensors"]
    for start, file in enumerate(files):
        save_file({name: values[name] for name in NAMES[start::2]}, file)
    checkpoint = load(folder, unet_weights=files)
    check(checkpoint, unet, values)
    assert roles(checkpoint)[1:] == [
        ("unet values", "even.safetensors"),
        ("unet values 2", "odd.safetensors"),
    ]


def test_two_values_for_the_same_tensor_are_refused(folder: Path, unet, increments) -> None:
    files = [folder / "a.safetensors", folder / "b.safetensors"]
    for number, file in enumerate(files):
        save_file({name: unet[name] + (1 + number) * increments[name] for name in NAMES[number:]}, file)
    with pytest.raises(
        CheckpointError, match=r"^a\.safetensors and b\.safetensors both hold values"
    ) as caught:
        load(folder, unet_weights=files)
    assert "values of 3 tensors (conv_in.weight, mid_block.resnets.1.norm2.weight, " in str(caught.value)
    assert "`unet_increments`" in str(caught.value)


def test_a_lora_comes_on_top_of_the_increments(folder: Path, unet) -> None:
    name = next(name for name in unet if name.endswith("attn1.to_q.weight"))
    generator = torch.Generator().manual_seed(1)
    increment = 0.01 * torch.randn(unet[name].shape, generator=generator)
    up, down = torch.randn(64, 2, generator=generator), torch.randn(2, 64, generator=generator)
    layer = name.removesuffix(".weight")
    lora = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    save_file(lora, folder / "lora.safetensors")
    publish(folder, "canny", {name: increment})
    checkpoint = load(folder, "canny", lora=[f"{folder / 'lora.safetensors'}:0.5"])
    expected = unet[name] + increment + 0.5 * (up @ down)
    assert torch.allclose(checkpoint.networks["unet"].tensors[name], expected, atol=1e-6)
    assert roles(checkpoint)[-2:] == [("unet increments", "canny"), ("lora", "lora.safetensors")]
