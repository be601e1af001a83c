"""Where weights come from: damaged and foreign files, hub repositories, a missing connection."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from weights_models import SDXL

from controlnext.errors import CheckpointError
from controlnext.weights import Checkpoint, lazy, load_checkpoint, places
from controlnext.weights.lazy import LazyTensors, held, is_finite, read_file
from controlnext.weights.places import choose_weights


@pytest.fixture
def folder(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "all"))


def load(folder: Path, **changes: object) -> Checkpoint:
    given = {"base": folder / "base", "control": folder / "control.safetensors"}
    return load_checkpoint(SDXL, **{**given, **changes})


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "control.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"control.safetensors is no readable .safetensors file"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "control.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no readable") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


class Command:
    """Pickled, it would run a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"weight": Command(f"touch {trace}")}, folder / "control.bin")
    with pytest.raises(CheckpointError, match="would need its code to run: it is not loaded") as caught:
        load(folder, control=folder / "control.bin")
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}])
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


def test_other_suffixes_are_refused(folder: Path) -> None:
    (folder / "control.safetensors").rename(folder / "control.onnx")
    with pytest.raises(CheckpointError, match=r"accepted are \.safetensors and \.bin"):
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


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64]
)
def test_finiteness_is_known_for_every_type_that_is_stored(dtype: torch.dtype) -> None:
    assert is_finite(torch.ones(3).to(dtype))
    assert is_finite(torch.ones(0).to(dtype))
    assert LazyTensors({"x": held(torch.ones(2, dtype=dtype))}, "test")["x"].dtype == dtype


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


def test_a_path_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.safetensors: no such file or folder, and no hub id"):
        load(folder, control=folder / "nowhere.safetensors")


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A model hub with one repository, ``somebody/model``: the tiny folder. Returns what was downloaded."""
    (folder / "base/unet/diffusion_pytorch_model.fp16.safetensors").touch()
    (folder / "base/unet/flax_model.msgpack").touch()
    (folder / "base/README.md").touch()
    downloads: list[list[str]] = []

    def model_info(_self: object, repository: str) -> SimpleNamespace:
        if repository != "somebody/model":
            raise RepositoryNotFoundError(
                "404: no such repository", response=SimpleNamespace(headers={}, request=None)
            )
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        return SimpleNamespace(sha="abc123", siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(_repository: str, revision: str, allow_patterns: list[str]) -> str:
        assert revision == "abc123"
        downloads.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(places.HfApi, "model_info", model_info)
    monkeypatch.setattr(places, "snapshot_download", snapshot_download)
    return downloads


def test_a_hub_id_downloads_what_is_needed_and_no_more(folder: Path, hub: list[list[str]]) -> None:
    checkpoint = load(folder, base="somebody/model/base", control="somebody/model/control.safetensors")
    control, base = hub
    assert sorted(base) == [
        "base/model_index.json",
        "base/scheduler/scheduler_config.json",
        "base/unet/config.json",
        "base/unet/diffusion_pytorch_model.safetensors",
        "base/vae/config.json",
        "base/vae/diffusion_pytorch_model.safetensors",
    ]
    assert control == ["control.safetensors"]
    assert [(source.name, source.detail) for source in checkpoint.sources] == [
        ("somebody/model/base", "unet/diffusion_pytorch_model.safetensors@abc123"),
        ("somebody/model/base", "vae/diffusion_pytorch_model.safetensors@abc123"),
        ("somebody/model/control.safetensors", "@abc123"),
    ]


def test_a_control_repository_brings_its_unet_tensors(folder: Path, hub: list[list[str]]) -> None:
    published = folder / "canny"
    published.mkdir()
    shutil.move(folder / "control.safetensors", published / "controlnet.safetensors")
    save_file({"conv_in.bias": torch.full((32,), 0.5)}, published / "unet.safetensors")
    checkpoint = load(folder, control="somebody/model/canny")
    assert hub == [["canny/controlnet.safetensors", "canny/unet.safetensors"]]
    bias = load_file(folder / "base/unet/diffusion_pytorch_model.safetensors")["conv_in.bias"]
    assert torch.equal(checkpoint.networks["unet"].tensors["conv_in.bias"], bias + 0.5)


def test_a_vae_from_the_hub(folder: Path, hub: list[list[str]]) -> None:
    load(folder, vae="somebody/model/base/vae")
    load(folder, vae="somebody/model/base")
    files = ["base/vae/config.json", "base/vae/diffusion_pytorch_model.safetensors"]
    assert hub == [files, files]


@pytest.mark.usefixtures("hub")
def test_an_unknown_repository_is_one_error(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no/such: no such file or folder here, and the hub refuses no/such: 404"
    ):
        load(folder, control="no/such")


@pytest.mark.usefixtures("hub")
def test_an_unknown_folder_of_a_repository_is_one_error(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"nothing that fits in vidit_depth; its weights are .*control\.safetensors"
    ):
        load(folder, control="somebody/model/vidit_depth")


def no_connection(*_args: object, **_options: object) -> None:
    raise ConnectionError("Name or service not known\nsecond line")


def test_without_a_connection_an_earlier_download_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places.HfApi, "model_info", no_connection)
    monkeypatch.setattr(places, "snapshot_download", lambda _repository, **_options: str(folder))
    checkpoint = load(folder, control="somebody/model/control.safetensors")
    assert checkpoint.sources[-1].name == "somebody/model/control.safetensors"


def test_without_a_connection_and_a_download_the_message_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_repository: str, local_files_only: bool) -> None:
        raise LocalEntryNotFoundError(f"no snapshot {local_files_only}")

    monkeypatch.setattr(places.HfApi, "model_info", no_connection)
    monkeypatch.setattr(places, "snapshot_download", nothing)
    with pytest.raises(
        CheckpointError, match=r"hub cannot be reached \(Name or service not known\)"
    ) as caught:
        load(folder, control="somebody/model")
    assert "\n" not in str(caught.value)
