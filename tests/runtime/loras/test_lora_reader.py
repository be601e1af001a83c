"""LoRA files read without PyTorch: the same matrices and the same refusals as by the reader of the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from controlnext.errors import CheckpointError
from controlnext.families import Family
from controlnext.runtime.loras.reader import Lora, read_lora
from controlnext.weights.lora import apply_loras
from support.lora_files import (
    RANK,
    SD3,
    SD15,
    SDXL,
    as_first_diffusers,
    as_kohya,
    as_peft,
    base_of,
    low_rank,
    networks,
    sgm_of,
)
from support.lora_rooms import manifest_with_room

FORMATS = {
    "sd15-peft": (SD15, lambda pairs, _modules: as_peft(pairs)),
    "sd15-first-diffusers": (SD15, lambda pairs, _modules: as_first_diffusers(pairs)),
    "sd15-kohya": (SD15, lambda pairs, _modules: as_kohya(pairs, alpha=2.0)),
    "sdxl-peft": (SDXL, lambda pairs, _modules: as_peft(pairs)),
    "sdxl-kohya": (SDXL, lambda pairs, modules: as_kohya(pairs, 3.0, sgm_of(modules))),
    "sd3-peft": (SD3, lambda pairs, _modules: as_peft(pairs)),
}


def assert_read_as_at_export(family: Family, modules: dict[str, Any], file: Path) -> Lora:
    """What the LoRA adds to every weight is what the export would add."""
    manifest = manifest_with_room(family, modules)
    lora = read_lora("style", file, manifest)
    base, before = base_of(family, modules), base_of(family, modules)
    apply_loras(family, base, [str(file)])
    for name, graph in manifest.graphs.items():
        assert graph.lora
        packed = lora.graphs[name]
        for layer in graph.lora.layers:
            delta = packed.up[:, slice(*layer.up)].T @ packed.down[:, slice(*layer.down)]
            weight = f"{layer.name}.weight"
            was, now = (part.parts[name].tensors[weight].read() for part in (before, base))
            delta = delta.reshape(len(was), *layer.kernel, -1).transpose(0, 3, 1, 2).reshape(was.shape)
            np.testing.assert_allclose(delta, (now - was).numpy(), rtol=1e-4, atol=1e-6, err_msg=layer.name)
    return lora


@pytest.mark.parametrize("case", FORMATS)
def test_every_published_format_is_read_as_at_export(case: str, tmp_path: Path) -> None:
    family, named = FORMATS[case]
    modules = networks(family)
    save_file(named(low_rank(modules), modules), tmp_path / "lora.safetensors")
    lora = assert_read_as_at_export(family, modules, tmp_path / "lora.safetensors")
    assert lora.rank == RANK


def test_the_settings_in_a_file_and_ranks_that_differ(tmp_path: Path) -> None:
    modules = networks(SD15)
    pairs = {
        name: (down[: 1 + number % 4], up[:, : 1 + number % 4])
        for number, (name, (down, up)) in enumerate(low_rank(modules).items())
    }
    settings = {
        "unet.r": RANK,
        "unet.lora_alpha": 12,
        "unet.alpha_pattern": {"to_q": 3},
        "unet.target_modules": ["x"],
        "text_encoder.r": RANK,
        "text_encoder.rank_pattern": {"fc1": 2},
        "text_encoder.lora_alpha": 6,
        "text_encoder.use_rslora": True,
    }
    tensors = {name: tensor.contiguous() for name, tensor in as_peft(pairs).items()}
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(settings)})
    assert_read_as_at_export(SD15, modules, file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_of_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    modules = {"unet": networks(SD15)["unet"]}
    tensors = {name: tensor.to(dtype) for name, tensor in as_peft(low_rank(modules)).items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = read_lora("style", tmp_path / "lora.safetensors", manifest_with_room(SD15, modules))
    layer = next(one for one in manifest_with_room(SD15, modules).graphs["unet"].lora.layers)  # type: ignore[union-attr]
    wanted = tensors[f"unet.{layer.name}.lora_B.weight"].float().numpy().reshape(-1, RANK).T
    np.testing.assert_array_equal(lora.graphs["unet"].up[:, slice(*layer.up)], wanted)


def test_what_the_bundle_has_no_graph_for_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modules = networks(SDXL)
    save_file(as_peft(low_rank(modules)), tmp_path / "lora.safetensors")
    unet = manifest_with_room(SDXL, {"unet": modules["unet"]})
    assert set(read_lora("style", tmp_path / "lora.safetensors", unet).graphs) == {"unet"}
    assert [record.args[1] for record in caplog.records] == ["text_encoder", "text_encoder_2"]  # type: ignore[index]


def refusal(family: Family, tensors: dict[str, Tensor], folder: Path, **metadata: str) -> str:
    save_file(tensors, folder / "file.safetensors", metadata or None)
    with pytest.raises(CheckpointError) as error:
        read_lora("style", folder / "file.safetensors", manifest_with_room(family, networks(family)))
    (line,) = str(error.value).splitlines()
    return line


def test_files_that_are_refused_at_export_are_refused(tmp_path: Path) -> None:
    pairs = low_rank(networks(SD15))
    peft, kohya = as_peft(pairs), as_kohya(pairs)
    assert "not a plain LoRA" in refusal(SD15, {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)}, tmp_path)
    for extra in ("dora_scale", "hada_w1_a", "lora_B.bias"):
        line = refusal(SD15, peft | {f"unet.conv_in.{extra}": torch.zeros(16)}, tmp_path)
        assert f"1 other tensors (unet.conv_in.{extra})" in line
    del kohya["lora_unet_conv_in.lora_up.weight"]
    assert "1 without their pair (lora_unet_conv_in.lora_down.weight)" in refusal(SD15, kohya, tmp_path)
    flat = {name: tensor.flatten(1) if ".conv" in name else tensor for name, tensor in peft.items()}
    assert "mis-shaped (conv_in [16, 4] x [4, 36]" in refusal(SD15, flat, tmp_path)
    line = refusal(SD15, as_peft(low_rank({"unet": networks(SDXL)["unet"]})), tmp_path)
    assert "does not fit the bundle's unet" in line
    assert "unknown (unet.add_embedding.linear_1.lora_A.weight" in line
    line = refusal(SDXL, as_peft(low_rank({"transformer": networks(SD3)["transformer"]})), tmp_path)
    assert "of other networks (transformer." in line
    holed = peft | {"unet.conv_in.lora_A.weight": peft["unet.conv_in.lora_A.weight"] * float("nan")}
    assert "NaN or infinity" in refusal(SD15, holed, tmp_path)


@pytest.mark.parametrize("settings", ['{"unet.r": 0}', '{"unet.lora_alpha": "much"}', "{", "[1]"])
def test_settings_without_sense_are_refused(settings: str, tmp_path: Path) -> None:
    line = refusal(SD15, as_peft(low_rank(networks(SD15))), tmp_path, lora_adapter_metadata=settings)
    assert "again" in line


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    manifest = manifest_with_room(SD15, {"unet": networks(SD15)["unet"]})
    (tmp_path / "old.bin").write_bytes(b"x")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    save_file({"x.lora_A.weight": torch.zeros(2, 2, dtype=torch.int8)}, tmp_path / "int.safetensors")
    for name, message in {
        "old.bin": "is not a .safetensors file, the only kind that is read at run time; convert it",
        "none.safetensors": "does not exist",
        "x" * 300: "cannot be read: File name too long",
        "torn.safetensors": "is not a readable .safetensors file",
        "int.safetensors": "is of type I8; accepted: F64, F32, F16, BF16",
        "": "not exactly one .safetensors file, but int.safetensors, torn.safetensors",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            read_lora("style", tmp_path / name, manifest)
