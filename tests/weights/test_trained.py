"""Trained UNet tensors: values and increments, diffusers' and original names, parts of the UNet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.cli.sources import parse_settings
from controlnext.errors import CheckpointError, InputError
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.shipped import original_layout
from support.weights_models import SDXL, rewrite_json

NAMES = [
    "down_blocks.0.resnets.0.conv1.weight",
    "mid_block.resnets.1.norm2.weight",
    "up_blocks.1.resnets.0.conv_shortcut.bias",
    "conv_in.weight",
]


@pytest.fixture
def folder(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint_dir, tmp_path / "all")
    return tmp_path / "all"


@pytest.fixture
def unet(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "base/unet/diffusion_pytorch_model.safetensors")


@pytest.fixture
def increments(unet: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.01 * torch.randn(unet[name].shape, generator=generator) for name in NAMES}


def load(folder: Path, *controls: str, **options: object) -> Checkpoint:
    control = [folder / name for name in controls or ["control.safetensors"]]
    return load_checkpoint(SDXL, base=folder / "base", control=control, **options)


def publish(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> str:
    """A directory as the family is published: controlnet.safetensors and unet.safetensors."""
    published = folder / name
    published.mkdir()
    shutil.copy(folder / "control.safetensors", published / "controlnet.safetensors")
    save_file(tensors, published / "unet.safetensors")
    return name


def roles(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    return [(source.role, source.name) for source in checkpoint.sources if source.name != "base"]


def check(checkpoint: Checkpoint, unet: dict[str, torch.Tensor], changed: dict[str, torch.Tensor]) -> None:
    """The UNet has the ``changed`` tensors, and the base's everywhere else."""
    tensors = checkpoint.networks["unet"].tensors
    assert list(tensors) == list(checkpoint.networks["unet"].module().state_dict())
    assert all(torch.equal(tensors[name], changed.get(name, tensor)) for name, tensor in unet.items())


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


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_increments_beside_the_control_module_are_used(folder: Path, unet, increments, suffix: str) -> None:
    """As the family is published: a directory with controlnet.safetensors and unet.safetensors."""
    publish(folder, "published", increments)
    if suffix == "bin":
        (folder / "published/unet.safetensors").unlink()
        torch.save(increments, folder / "published/unet.bin")
    sums = {name: unet[name] + tensor for name, tensor in increments.items()}
    for given in ("published", "published/controlnet.safetensors"):
        checkpoint = load(folder, given)
        check(checkpoint, unet, sums)
        assert roles(checkpoint)[-1] == ("unet increments", "published")


@pytest.mark.parametrize("name", ["controlnet.fp16.safetensors", "controlnet.SAFETENSORS", "controlnet.bin"])
def test_another_form_of_the_control_brings_them_too(folder: Path, unet, increments, name: str) -> None:
    publish(folder, "published", increments)
    if name.endswith("bin"):
        torch.save(load_file(folder / "control.safetensors"), folder / "published" / name)
    else:
        shutil.copy(folder / "control.safetensors", folder / "published" / name)
    sums = {name: unet[name] + tensor for name, tensor in increments.items()}
    check(load(folder, f"published/{name}"), unet, sums)


@pytest.mark.parametrize("given", ["linked", "linked/controlnet.safetensors", "linked/canny.safetensors"])
def test_beside_a_link_and_then_beside_what_it_leads_to(folder: Path, unet, increments, given: str) -> None:
    publish(folder, "published", increments)
    link = folder / "linked" / (Path(given).name if "." in given else "controlnet.safetensors")
    link.parent.mkdir()
    link.symlink_to(folder / "published/controlnet.safetensors")
    sums = {name: unet[name] + tensor for name, tensor in increments.items()}
    checkpoint = load(folder, given)
    check(checkpoint, unet, sums)
    assert roles(checkpoint)[-1] == ("unet increments", "published")
    if "canny" not in given:
        save_file({"conv_out.bias": torch.ones(4)}, folder / "linked/unet.safetensors")
        check(load(folder, given), unet, {"conv_out.bias": unet["conv_out.bias"] + 1})


@pytest.mark.parametrize("given", ["published", "published/controlnet.safetensors"])
def test_other_unet_tensors_than_those_taken_are_told_of(
    folder: Path, unet, increments, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    publish(folder, "published", increments)
    save_file(increments, folder / "published/unet.fp16.safetensors")
    load(folder, given)
    assert not caplog.records
    save_file(increments, folder / "published/unet_v2.safetensors")
    load(folder, given)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "published: of its weight files unet.safetensors is read and unet_v2.safetensors is"
    )
    caplog.clear()
    load(folder, "control.safetensors", unet_weights=folder / "published", unet_increments=True)
    assert len(caplog.records) == 1
    caplog.clear()
    (folder / "published/unet.safetensors").unlink()
    (folder / "published/unet.fp16.safetensors").unlink()
    check(load(folder, given), unet, {})
    assert "of its weight files none is read and unet_v2.safetensors is not" in caplog.text


def test_other_tensors_than_those_taken_of_a_given_folder_are_told_of(
    folder: Path, increments, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "trained").mkdir()
    for name in ("unet", "finetune"):
        save_file(increments, folder / "trained" / f"{name}.safetensors")
    load(folder, unet_weights=folder / "trained", unet_increments=True)
    assert (
        "trained: of its weight files unet.safetensors is read and finetune.safetensors is not" in caplog.text
    )


@pytest.mark.parametrize("name", ["canny.safetensors", "controlnext.safetensors"])
def test_what_may_belong_to_another_control_is_warned_of(
    folder: Path, unet, increments, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Several controls in one directory: its UNet tensors go with the one that the directory stands for."""
    publish(folder, "published", increments)
    shutil.copy(folder / "control.safetensors", folder / "published" / name)
    check(load(folder, f"published/{name}"), unet, {})
    assert f"{name}: unet.safetensors beside it is not used" in caplog.text
    assert "give it with `unet_weights` (and `unet_increments" in caplog.text
    caplog.clear()
    options = {"unet_weights": folder / "published/unet.safetensors", "unet_increments": True}
    sums = {name: unet[name] + tensor for name, tensor in increments.items()}
    check(load(folder, f"published/{name}", **options), unet, sums)
    assert not caplog.records


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


def test_increments_of_several_controls_are_added_in_their_order(folder: Path, unet, increments) -> None:
    other = {name: -0.3 * tensor for name, tensor in increments.items() if name != NAMES[0]}
    publish(folder, "canny", increments)
    publish(folder, "depth", {**other, "conv_out.bias": torch.ones(4)})
    checkpoint = load(folder, "canny", "depth")
    sums = {name: (unet[name] + increments[name]) + other.get(name, 0) for name in NAMES}
    check(checkpoint, unet, {**sums, "conv_out.bias": unet["conv_out.bias"] + 1})
    expected = [("control", "canny"), ("control 2", "depth")]
    expected += [("unet increments", "canny"), ("unet increments 2", "depth")]
    assert roles(checkpoint) == expected


def test_increments_beside_the_second_control_alone_carry_its_number(folder: Path, unet, increments) -> None:
    publish(folder, "depth", increments)
    checkpoint = load(folder, "control.safetensors", "depth")
    check(checkpoint, unet, {name: unet[name] + tensor for name, tensor in increments.items()})
    assert roles(checkpoint)[-1] == ("unet increments 2", "depth")


def test_the_same_control_twice_brings_its_increments_once(folder: Path, unet, increments) -> None:
    publish(folder, "canny", increments)
    checkpoint = load(folder, "canny", "canny")
    check(checkpoint, unet, {name: unet[name] + tensor for name, tensor in increments.items()})
    assert roles(checkpoint) == [("control", "canny"), ("control 2", "canny"), ("unet increments", "canny")]


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


def test_given_weights_take_the_place_of_those_beside_the_control(
    folder: Path, unet, increments, caplog: pytest.LogCaptureFixture
) -> None:
    publish(folder, "canny", {"conv_out.bias": torch.ones(4)})
    save_file(increments, folder / "trained.safetensors")
    checkpoint = load(folder, "canny", unet_weights=folder / "trained.safetensors", unet_increments=True)
    check(checkpoint, unet, {name: unet[name] + tensor for name, tensor in increments.items()})
    assert "canny: the unet tensors beside the control module are not used" in caplog.text
    caplog.clear()
    load(
        folder,
        "canny/controlnet.safetensors",
        unet_weights=folder / "trained.safetensors",
        unet_increments=True,
    )
    assert "canny: the unet tensors beside the control module are not used" in caplog.text
    caplog.clear()
    load(folder, "canny", unet_weights=folder / "canny", unet_increments=True)
    assert not caplog.records


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
