"""Files of weights: damaged and foreign ones, every form in which state dicts are saved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.weights import Checkpoint, lazy, load_checkpoint
from controlnext.weights.lazy import LazyTensor, LazyTensors, is_finite, read_file
from controlnext.weights.weight_source import choose_weights
from support.payloads import Command
from support.weights_models import SDXL


@pytest.fixture
def folder(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "all"))


def load(folder: Path, **changes: object) -> Checkpoint:
    given = {"base": folder / "base", "control": folder / "control.safetensors"}
    return load_checkpoint(SDXL, **{**given, **changes})


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "control.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"control.safetensors is not a readable .safetensors file"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "control.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a readable") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_before_a_configuration_changes_nothing(folder: Path) -> None:
    known = load(folder).networks["unet"].config
    for file in (folder / "base").rglob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load(folder).networks["unet"].config == known


def test_a_pipe_is_no_file_of_weights_and_not_waited_for(folder: Path) -> None:
    for file in (folder / "control.safetensors", folder / "base" / "unet" / "config.json"):
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(CheckpointError, match=r"is not a file|is neither a file nor a directory|lacks"):
            load(folder)


def test_code_in_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"weight": Command(f"touch {trace}")}, folder / "control.bin")
    with pytest.raises(CheckpointError, match="would need its code to run: it is not loaded") as caught:
        load(folder, control=folder / "control.bin")
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        {"epoch": 3},
        {"weight": torch.zeros(1), "epoch": 3},
        {"state_dict": {"epoch": 3}},
        {1: torch.zeros(1)},
    ],
)
def test_a_pickle_without_named_tensors_is_refused(folder: Path, content: object) -> None:
    torch.save(content, folder / "control.bin")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        load(folder, control=folder / "control.bin")


def test_a_truncated_pickle_is_refused(folder: Path) -> None:
    torch.save(load_file(folder / "control.safetensors"), folder / "control.bin")
    (folder / "control.bin").write_bytes((folder / "control.bin").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged, or holds more than tensors"):
        load(folder, control=folder / "control.bin")


def test_pickles_of_the_old_format_are_read(folder: Path) -> None:
    tensors = load_file(folder / "control.safetensors")
    torch.save(tensors, folder / "control.bin", _use_new_zipfile_serialization=False)
    read = load(folder, control=folder / "control.bin").networks["control"].tensors
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("suffix", ["bin", "ckpt", "pt", "pth", "BIN", "CKPT"])
@pytest.mark.parametrize("nested", [False, True])
def test_every_form_of_a_pickled_state_dict_is_read(folder: Path, suffix: str, nested: bool) -> None:
    """Plain, and as training frameworks save it, beside numbers and with parameters in it."""
    tensors = load_file(folder / "control.safetensors")
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    content = {"state_dict": parameters, "epoch": 3, "optimizer": [{"lr": 0.1}]} if nested else tensors
    torch.save(content, folder / f"control.{suffix}")
    read = read_file(folder / f"control.{suffix}")
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in tensors.items())
    assert not any(tensor.read().requires_grad for tensor in read.values())
    assert read.keys() == tensors.keys()


@pytest.mark.parametrize("suffix", ["SAFETENSORS", "Safetensors", "CKPT"])
def test_suffixes_in_upper_case_are_found_in_folders(folder: Path, suffix: str) -> None:
    path = folder / "base/unet/diffusion_pytorch_model.safetensors"
    if suffix == "CKPT":
        torch.save({"state_dict": load_file(path)}, path.with_suffix(".CKPT"))
        path.unlink()
    else:
        path.rename(path.with_suffix(f".{suffix}"))
    assert load(folder).networks["unet"].tensors["conv_in.weight"].shape == (32, 4, 3, 3)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_names_lose_what_wrappers_put_before_them(folder: Path, prefix: str) -> None:
    """Of the control, of trained UNet tensors, of the base's networks and of a VAE of its own."""
    trained = {"conv_in.bias": torch.full((32,), 0.5)}
    save_file({prefix + name: tensor for name, tensor in trained.items()}, folder / "trained.safetensors")
    files = ["control", "base/unet/diffusion_pytorch_model", "base/vae/diffusion_pytorch_model"]
    plain = {}
    for file in files:
        path = folder / f"{file}.safetensors"
        plain[file] = load_file(path)
        save_file({prefix + name: tensor for name, tensor in plain[file].items()}, path)
    shutil.copy(folder / f"{files[2]}.safetensors", folder / "vae.safetensors")
    checkpoint = load(folder, unet_weights=folder / "trained.safetensors", vae=folder / "vae.safetensors")
    for network, file in zip(("control", "unet", "vae"), files, strict=True):
        tensors = checkpoint.networks[network].tensors
        expected = plain[file] | (trained if network == "unet" else {})
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_other_suffixes_are_refused(folder: Path) -> None:
    (folder / "control.safetensors").rename(folder / "control.onnx")
    with pytest.raises(CheckpointError, match=r"accepted: \.safetensors, \.bin, \.ckpt, \.pt, \.pth"):
        load(folder, control=folder / "control.onnx")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_with_nan_or_infinity_is_named_on_access(folder: Path, value: float) -> None:
    tensors = load_file(folder / "control.safetensors")
    tensors["mid_convs.1.bias"][3] = value
    save_file(tensors, folder / "control.safetensors")
    network = load(folder).networks["control"]
    assert is_finite(network.tensors["mid_convs.1.weight"])
    with pytest.raises(CheckpointError, match=r"control: tensor mid_convs.1.bias holds NaN or infinity"):
        network.module()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_finiteness_is_known_for_every_type_that_is_stored(dtype: torch.dtype) -> None:
    assert is_finite(torch.ones(3).to(dtype))
    assert is_finite(torch.ones(0).to(dtype))
    assert LazyTensors({"x": LazyTensor.from_tensor(torch.ones(2, dtype=dtype))}, "test")["x"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_other_types_are_refused(dtype: torch.dtype) -> None:
    tensors = LazyTensors({"x": LazyTensor.from_tensor(torch.ones(2, dtype=dtype))}, "test")
    with pytest.raises(CheckpointError, match=f"tensor x is of type {str(dtype)[6:]}"):
        tensors["x"]


def test_a_large_file_is_mapped_anew_from_time_to_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_REOPEN_AFTER", 1000)
    path = folder / "control.safetensors"
    tensors = read_file(path)
    assert all(torch.equal(tensors[name].read(), tensor) for name, tensor in load_file(path).items())


def test_weight_files_are_chosen_by_stem_then_format_then_variant() -> None:
    names = ["b.safetensors", "a.fp16.safetensors", "a.bin", "a.txt", "ab.safetensors"]
    assert choose_weights(names, ("a", "b")) == ["a.fp16.safetensors"]
    assert choose_weights([*names, "a.safetensors"], ("a", "b")) == ["a.safetensors"]
    assert choose_weights(["a.bin", "b.safetensors"], ("a", "b")) == ["a.bin"]
    assert choose_weights(names, ("c",)) == []
    assert choose_weights(["a.pt", "a.ckpt", "a.BIN"], ("a",)) == ["a.BIN"]
    assert choose_weights(["a.pt", "a.ckpt"], ("a",)) == ["a.ckpt"]
    assert len(choose_weights(["a.safetensors", "a.SAFETENSORS"], ("a",))) == 1


def test_a_path_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"nowhere.safetensors: no such file or directory, and not a hub id"
    ):
        load(folder, control=folder / "nowhere.safetensors")
