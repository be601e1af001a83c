"""Control modules are found in directories and files, and several of them become networks of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.families import ControlSpec
from controlnext.models.control_module import ControlModule
from support.recipe import numbers
from support.weights_models import SDXL


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


def test_a_folder_without_control_weights_is_refused(load, control: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no weights of the control; accepted: .*no weights at all: g"):
        load(tmp_path / "empty")
    (tmp_path / "inside").mkdir()
    shutil.copy(control, tmp_path / "inside" / "depth.safetensors")
    control.rename(tmp_path / "canny.safetensors")
    with pytest.raises(
        CheckpointError, match=r"; it has canny.safetensors, inside/depth.safetensors: give the path of"
    ):
        load(tmp_path)


def test_other_weights_in_a_controls_folder_are_told_of(
    load, control: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """But not other forms of the same, and not where the file itself was given."""
    folder = tmp_path / "control"
    folder.mkdir()
    for name in ("controlnet.safetensors", "controlnet.fp16.safetensors", "controlnet.bin", "readme.txt"):
        shutil.copy(control, folder / name)
    load(folder)
    assert not caplog.records
    shutil.copy(control, folder / "canny.safetensors")
    load(folder / "controlnet.safetensors")
    assert not caplog.records
    load(folder)
    assert [record.getMessage() for record in caplog.records] == [
        "control: of its weight files controlnet.safetensors is read and canny.safetensors is not; if"
        " that one is meant, give its path"
    ]


def test_a_source_is_named_as_it_was_given(load, control: Path, tmp_path: Path) -> None:
    """As in the hub's cache, where links lead to files that are named by digests."""
    blob = control.rename(tmp_path / "0f3a")
    control.symlink_to(blob)
    assert load(control).sources[-1].name == "control.safetensors"


@pytest.fixture
def second(control: Path) -> Path:
    """A second control of the same layout and other numbers."""
    path = control.with_name("depth.safetensors")
    shapes = {name: tensor.shape for name, tensor in load_file(control).items()}
    save_file(numbers(shapes, 1), path)
    return path


def test_several_controls_are_networks_of_their_own_in_their_order(control: Path, second: Path, load) -> None:
    checkpoint = load([control, second])
    names = [name for name, network in checkpoint.networks.items() if network.spec is None]
    assert names == ["control", "control_2"]
    for name, path in zip(names, (control, second), strict=True):
        tensors = load_file(path)
        found = checkpoint.networks[name].module().state_dict()
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    sources = {source.role: source.name for source in checkpoint.sources}
    assert (sources["control"], sources["control 2"]) == ("control.safetensors", "depth.safetensors")
    inputs = [tensor.name for tensor in checkpoint.graphs[-1].inputs]
    assert inputs[-4:] == ["control_image", "control_scale", "control_image_2", "control_scale_2"]


def test_each_of_several_controls_has_its_own_widths(control: Path, load) -> None:
    small = ControlModule(ControlSpec(32, stages=(64, 128)))
    save_file(small.state_dict(), control.with_name("small.safetensors"))
    checkpoint = load([control, control.with_name("small.safetensors")])
    stages = [network.config["stages"] for network in checkpoint.controls]
    assert stages == [(128, 256), (64, 128)]
    assert checkpoint.variant == SDXL.variants["sdxl"]


def test_the_second_of_two_controls_is_named_when_it_does_not_fit(control: Path, load) -> None:
    shapes = {"mid_convs.1.weight": (48, 256, 1, 1), "mid_convs.1.bias": (48,)}
    save_file({**load_file(control), **numbers(shapes, 0)}, control.with_name("wide.safetensors"))
    with pytest.raises(CheckpointError, match=r"^wide.safetensors gives 48 channels"):
        load([control, control.with_name("wide.safetensors")])
