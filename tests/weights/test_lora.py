"""LoRAs: fused as diffusers fuses them, whatever names and settings the file has; refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from controlnext.bundle.files import sha256
from controlnext.errors import CheckpointError, InputError
from controlnext.families import Family, get_family
from controlnext.weights.base import Base
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.lora import apply_loras
from controlnext.weights.trained import FineTunedWeights, apply_trained
from support.lora_files import (
    RANK,
    SD3,
    SD15,
    SDXL,
    as_first_diffusers,
    as_kohya,
    as_peft,
    assert_fused,
    base_of,
    low_rank,
    networks,
    sgm_of,
    stock,
)

FORMATS = {
    "sd15-peft": (SD15, lambda pairs, _modules: as_peft(pairs)),
    "sd15-first-diffusers": (SD15, lambda pairs, _modules: as_first_diffusers(pairs)),
    "sd15-kohya": (SD15, lambda pairs, _modules: as_kohya(pairs, alpha=2.0)),
    "sdxl-peft": (SDXL, lambda pairs, _modules: as_peft(pairs)),
    "sdxl-kohya": (SDXL, lambda pairs, modules: as_kohya(pairs, 3.0, sgm_of(modules))),
    "sd3-peft": (SD3, lambda pairs, _modules: as_peft(pairs)),
}


@pytest.mark.export
@pytest.mark.parametrize("case", FORMATS)
def test_every_published_format_is_fused_as_diffusers_does(case: str, tmp_path: Path) -> None:
    family, named = FORMATS[case]
    modules = networks(family)
    pairs = low_rank(modules)
    file = tmp_path / "lora.safetensors"
    save_file(named(pairs, modules), file)
    base, before = base_of(family, modules), base_of(family, modules)

    sources = apply_loras(family, base, [f"{file}:0.7"])

    assert_fused(base, stock(family, modules, {file: 0.7}), before, len(pairs))
    (source,) = sources
    assert (source.role, source.name) == ("lora", "lora.safetensors")
    assert (source.sha256, source.detail) == (sha256(file), "scale 0.7")


@pytest.mark.export
def test_two_loras_of_different_scales_on_top_of_increments(tmp_path: Path) -> None:
    modules = networks(SDXL)
    files = {tmp_path / "a.safetensors": 0.5, tmp_path / "b.bin": -1.25}
    pairs = [low_rank(modules, seed) for seed in (1, 2)]
    save_file(as_peft(pairs[0]), tmp_path / "a.safetensors")
    torch.save(as_kohya(pairs[1], 2.0, sgm_of(modules)), tmp_path / "b.bin")
    base, before = base_of(SDXL, modules), base_of(SDXL, modules)
    part, unet = base.parts["unet"], modules["unet"].state_dict()
    increments = {name: 0.01 * torch.ones_like(unet[name]) for name in list(unet)[:40]}

    trained = FineTunedWeights(
        "increments", {name: LazyTensor.from_tensor(tensor) for name, tensor in increments.items()}
    )
    part.tensors = apply_trained(part.tensors, [trained], sgm_of(modules), increments=True)
    sources = apply_loras(SDXL, base, [f"{file}:{scale}" for file, scale in files.items()])

    modules["unet"].load_state_dict({**unet, **{n: unet[n] + increments[n] for n in increments}})
    touched = {f"{name}.weight" for name in pairs[0]} | {f"unet.{name}" for name in increments}
    assert_fused(base, stock(SDXL, modules, files), before, len(touched))
    assert [source.detail for source in sources] == ["scale 0.5", "scale -1.25"]


def test_strength_as_the_settings_in_the_file_say(tmp_path: Path) -> None:
    """diffusers' trainers save peft's settings instead of alphas; ranks may differ too."""
    modules = networks(SD15)
    pairs = low_rank(modules)
    unet = {name: 3 if name.endswith("to_q") else 12 for name in pairs if name.startswith("unet.")}
    settings = {
        "unet.r": RANK,
        "unet.lora_alpha": 12,
        "unet.alpha_pattern": {"to_q": 3},
        "unet.target_modules": [name.removeprefix("unet.") for name in unet],
        "text_encoder.r": RANK,
        "text_encoder.lora_alpha": 6,
        "text_encoder.use_rslora": True,
        "text_encoder.target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    }
    file = tmp_path / "lora.safetensors"
    save_file(as_peft(pairs), file, {"lora_adapter_metadata": json.dumps(settings)})
    base, before = base_of(SD15, modules), base_of(SD15, modules)

    apply_loras(SD15, base, [str(file)])

    assert_fused(base, stock(SD15, modules, {file: 1.0}), before, len(pairs))


def test_every_layer_has_its_own_alpha_and_rank(tmp_path: Path) -> None:
    """As the trainers compute it: W + alpha / rank * up @ down."""
    modules = networks(SDXL)
    ranked = enumerate(low_rank(modules).items())
    pairs = {name: (down[: 1 + i % 4], up[:, : 1 + i % 4]) for i, (name, (down, up)) in ranked}
    file = as_kohya(pairs, 1.0, sgm_of(modules))
    alphas = [name for name in file if name.endswith(".alpha")]
    file |= {name: torch.tensor(1.0 + i % 5) for i, name in enumerate(alphas)}
    save_file({name: tensor.contiguous() for name, tensor in file.items()}, tmp_path / "lora.safetensors")
    base = base_of(SDXL, modules)

    apply_loras(SDXL, base, [str(tmp_path / "lora.safetensors")])

    for i, (name, (down, up)) in enumerate(pairs.items()):
        network, _, layer = name.partition(".")
        before = modules[network].get_submodule(layer).weight
        delta = (1.0 + i % 5) / (1 + i % 4) * (up.flatten(1) @ down.flatten(1)).reshape(before.shape)
        fused = base.parts[network].tensors[f"{layer}.weight"].read()
        torch.testing.assert_close(fused, before + delta, rtol=1e-5, atol=1e-6)


def test_nothing_of_the_base_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    modules = networks(SD15)
    save_file(as_peft(low_rank(modules)), tmp_path / "lora.safetensors")
    base = base_of(SD15, modules)
    reads: list[str] = []
    for part in base.parts.values():
        part.tensors = {name: counted(name, tensor, reads) for name, tensor in part.tensors.items()}

    apply_loras(SD15, base, [str(tmp_path / "lora.safetensors")])
    assert reads == []
    base.parts["unet"].tensors["conv_in.weight"].read()
    assert reads == ["conv_in.weight"]


def counted(name: str, tensor: LazyTensor, reads: list[str]) -> LazyTensor:
    def read() -> Tensor:
        reads.append(name)
        return tensor.read()

    return LazyTensor(tensor.shape, read)


def test_the_part_for_an_absent_text_encoder_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modules = networks(SDXL)
    pairs = low_rank(modules)
    file = tmp_path / "lora.safetensors"
    save_file(as_kohya(pairs, 1.0, sgm_of(modules)), file)
    unet = {"unet": modules["unet"]}
    base, before = base_of(SDXL, unet), base_of(SDXL, unet)

    apply_loras(SDXL, base, [str(file)])

    expected = {"unet": stock(SDXL, modules, {file: 1.0})["unet"]}
    assert_fused(base, expected, before, sum(name.startswith("unet.") for name in pairs))
    warnings = [record.getMessage() for record in caplog.records if record.name == "controlnext.weights.lora"]
    assert len(warnings) == 2
    assert "text_encoder_2" in warnings[1]


@pytest.mark.parametrize(
    ("name", "suffix", "detail"),
    [
        ("style.safetensors", "", "scale 1"),
        ("style.safetensors", ":0", "scale 0"),
        ("style.safetensors", ":1e-2", "scale 0.01"),
        ("style:0.5", "", "scale 1"),
        ("style:v2", ":0.5", "scale 0.5"),
    ],
)
def test_what_follows_the_last_colon_is_a_scale_unless_it_belongs_to_the_path(
    name: str, suffix: str, detail: str, tmp_path: Path
) -> None:
    modules = networks(SD15)
    place = tmp_path / name
    file = place if place.suffix == ".safetensors" else place / "pytorch_lora_weights.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file(as_peft(low_rank(modules)), file)
    (source,) = apply_loras(SD15, base_of(SD15, modules), [f"{place}{suffix}"])
    assert source.detail.endswith(detail)


@pytest.mark.parametrize("scale", ["strong", "", "0,5", "nan", "inf", "-1e400"])
def test_a_scale_that_is_no_finite_number_is_refused(scale: str, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"is not a finite number; give PATH"):
        apply_loras(SD15, base_of(SD15, {}), [f"{file}:{scale}"])


def refusal(family: Family, tensors: dict[str, Tensor], folder: Path) -> str:
    """The one line with which a file of these tensors is refused."""
    save_file(tensors, folder / "file.safetensors")
    with pytest.raises(CheckpointError) as error:
        apply_loras(family, base_of(family, networks(family)), [str(folder / "file.safetensors")])
    (line,) = str(error.value).splitlines()
    return line


def test_a_file_that_is_no_lora_is_refused_with_what_it_looks_like(tmp_path: Path) -> None:
    line = refusal(SD15, {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)}, tmp_path)
    assert "not a plain LoRA (it looks like a VAE)" in line
    assert "an empty file" in refusal(SD15, {}, tmp_path)


@pytest.mark.parametrize("extra", ["dora_scale", "hada_w1_a", "lora_B.bias"])
def test_other_kinds_of_adapters_are_refused_by_name(extra: str, tmp_path: Path) -> None:
    matrices = as_peft(low_rank(networks(SD15)))
    line = refusal(SD15, matrices | {f"unet.conv_in.{extra}": torch.zeros(16)}, tmp_path)
    assert f"1 other tensors (unet.conv_in.{extra})" in line


@pytest.mark.parametrize("settings", ['{"unet.r": 0}', '{"unet.lora_alpha": "much"}', "{", "[1]"])
def test_settings_that_make_no_sense_are_refused(settings: str, tmp_path: Path) -> None:
    modules = networks(SD15)
    file = tmp_path / "lora.safetensors"
    save_file(as_peft(low_rank(modules)), file, {"lora_adapter_metadata": settings})
    with pytest.raises(CheckpointError, match=r"get (it|the file) again"):
        apply_loras(SD15, base_of(SD15, modules), [str(file)])


def test_half_a_layer_is_refused(tmp_path: Path) -> None:
    matrices = as_kohya(low_rank(networks(SD15)))
    del matrices["lora_unet_conv_in.lora_up.weight"]
    line = refusal(SD15, matrices, tmp_path)
    assert "1 without their pair (lora_unet_conv_in.lora_down.weight)" in line


def test_matrices_of_other_dimensions_are_refused(tmp_path: Path) -> None:
    matrices = as_peft(low_rank({"unet": networks(SD15)["unet"]}))
    flat = {name: tensor.flatten(1) if ".conv" in name else tensor for name, tensor in matrices.items()}
    assert "mis-shaped (conv_in [16, 4] x [4, 36] for [16, 4, 3, 3]" in refusal(SD15, flat, tmp_path)
    bare = {name: tensor.flatten() for name, tensor in matrices.items()}
    assert f"0 low-rank matrices; {len(matrices)} other tensors" in refusal(SD15, bare, tmp_path)


def test_a_lora_of_another_family_is_refused_with_the_layers_that_do_not_fit(tmp_path: Path) -> None:
    unet = {"unet": networks(SDXL)["unet"]}
    line = refusal(SD15, as_peft(low_rank(unet)), tmp_path)
    assert "does not fit the base's unet" in line
    assert "unknown (add_embedding.linear_1.lora_A.weight" in line
    assert "mis-shaped (conv_in [32, 4, 1, 1] x [4, 4, 3, 3] for [16, 4, 3, 3]" in line
    line = refusal(SDXL, as_peft(low_rank({"transformer": networks(SD3)["transformer"]})), tmp_path)
    assert "of other networks (transformer." in line


def test_a_folder_with_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors, b\.safetensors; give the LoRA's file itself"):
        apply_loras(SD15, base_of(SD15, {}), [str(tmp_path)])


def test_a_family_whose_pipeline_takes_no_lora_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"LoRAs are not supported by svd: diffusers' StableVideoDiffusionPipeline has none"
    ):
        apply_loras(get_family("svd"), Base({}, {}), ["x.safetensors"])
