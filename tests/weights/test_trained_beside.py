"""Trained UNet tensors beside control modules are used with their control, and others are warned of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.trained_weights import NAMES, check, load, publish, roles


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
