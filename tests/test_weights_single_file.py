"""Single-file checkpoints under their original names: the key conversion, held against diffusers' own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from weights_models import NETWORKS, SDXL, add_text_encoders, shrink_shipped

from controlnext.errors import CheckpointError
from controlnext.weights import load_checkpoint, shipped
from controlnext.weights.lazy import held
from controlnext.weights.networks import empty_module, match, shapes_of
from controlnext.weights.original import from_original
from controlnext.weights.shipped import original_layout, section, shipped_config

PREFIX = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


def originals(name: str, tensors: dict[str, torch.Tensor], layout) -> dict[str, torch.Tensor]:
    """One network's tensors as an original checkpoint holds them: joined projections, 1 x 1 convolutions."""
    joined: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        origin = PREFIX[name] + layout(key).name.removeprefix("text_model.")
        if origin.endswith("text_projection"):
            tensor = tensor.T.contiguous()
        elif "in_proj" in origin and origin in joined:
            continue
        elif "in_proj" in origin:
            tensor = torch.cat([tensors[key.replace(".k_proj", f".{part}_proj")] for part in "qkv"])
        elif ".attn_1." in origin and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        joined[origin] = tensor
    return joined


@pytest.fixture(scope="module")
def full_size() -> tuple[dict[str, torch.nn.Module], dict[str, torch.Tensor]]:
    """The full-size networks and the checkpoint that holds them, without memory for the weights."""
    modules = {
        name: empty_module(network, shipped_config(SDXL, network)) for name, network in SDXL.networks.items()
    }
    checkpoint: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        layout = original_layout(SDXL, name, shipped_config(SDXL, SDXL.networks[name]))
        checkpoint |= originals(name, module.state_dict(), layout)
    return modules, checkpoint


def test_full_size_networks_have_the_published_number_of_tensors(full_size) -> None:
    modules, checkpoint = full_size
    counts = {name: len(module.state_dict()) for name, module in modules.items()}
    assert counts == {"unet": 1680, "vae": 248, "text_encoder": 196, "text_encoder_2": 517}
    # sd_xl_base_1.0.safetensors has 2515: these, CLIP's position ids and its logit scale
    assert len(checkpoint) == 2513
    assert checkpoint["model.diffusion_model.label_emb.0.0.weight"].shape == (1280, 2816)
    assert checkpoint["conditioner.embedders.1.model.text_projection"].shape == (1280, 1280)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder_2"])
def test_conversion_equals_that_of_diffusers(full_size, name: str) -> None:
    """Every tensor that diffusers passes on unchanged has the name that diffusers gives it."""
    modules, checkpoint = full_size
    if name == "unet":
        theirs = single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), dict(modules[name].config))
    elif name == "vae":
        theirs = single_file_utils.convert_ldm_vae_checkpoint(dict(checkpoint), dict(modules[name].config))
    else:
        theirs = single_file_utils.convert_open_clip_checkpoint(
            modules[name], dict(checkpoint), prefix=PREFIX[name]
        )
    layout = original_layout(SDXL, name, shipped_config(SDXL, SDXL.networks[name]))
    same = [
        key for key, tensor in theirs.items() if tensor is checkpoint.get(PREFIX[name] + layout(key).name)
    ]
    changed = set(theirs) - set(same)
    assert set(theirs) == set(modules[name].state_dict())
    assert all("mid_block.attentions" in key or "_proj." in key or "projection" in key for key in changed)


def test_full_size_checkpoint_fits_strictly(full_size) -> None:
    modules, checkpoint = full_size
    lazy = {name: held(tensor) for name, tensor in checkpoint.items()}
    for name, module in modules.items():
        layout = original_layout(SDXL, name, shipped_config(SDXL, SDXL.networks[name]))
        expected = shapes_of(module)
        found = from_original(section(SDXL, name, lazy), layout, expected)
        assert list(match(found, expected, name)) == list(expected)


@pytest.fixture
def small(tmp_path: Path, tiny_checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny base, the same as ``single.safetensors``, and shipped configurations of these sizes."""
    base = add_text_encoders(Path(shutil.copytree(tiny_checkpoint_dir / "base", tmp_path / "base")))
    folder = shrink_shipped(base, tmp_path / "shipped")
    monkeypatch.setattr(shipped, "shipped_folder", lambda _family: folder)
    single = {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6), "alphas_cumprod": torch.ones(9)}
    for name in NETWORKS:
        stem = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
        layout = original_layout(SDXL, name, shipped_config(SDXL, SDXL.networks[name]))
        single |= originals(name, load_file(base / name / f"{stem}.safetensors"), layout)
    save_file(single, tmp_path / "single.safetensors")
    return tmp_path


def test_a_small_single_file_gives_the_same_values_as_its_folder(
    small: Path, tiny_checkpoint_dir: Path
) -> None:
    control = tiny_checkpoint_dir / "control.safetensors"
    folder = load_checkpoint(SDXL, base=small / "base", control=control)
    single = load_checkpoint(SDXL, base=small / "single.safetensors", control=control)
    assert [source.role for source in single.sources] == ["base", "control"]
    assert set(single.tokenizers) == set(folder.tokenizers)
    for name in NETWORKS:
        ours, theirs = single.networks[name].tensors, folder.networks[name].tensors
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert all(tensor.is_contiguous() for tensor in ours.values())


def test_unknown_tensors_in_a_section_are_refused(small: Path, tiny_checkpoint_dir: Path) -> None:
    path = small / "single.safetensors"
    save_file({**load_file(path), "first_stage_model.encoder.extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"vae does not fit: 1 unexpected \(encoder.extra.weight\)"):
        load_checkpoint(SDXL, base=path, control=tiny_checkpoint_dir / "control.safetensors")


def test_a_file_of_one_network_is_no_base(tiny_checkpoint_dir: Path) -> None:
    unet = tiny_checkpoint_dir / "base/unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match="it has no unet and looks like an SDXL UNet"):
        load_checkpoint(SDXL, base=unet, control=tiny_checkpoint_dir / "control.safetensors")


def test_a_vae_under_original_names(small: Path, tiny_checkpoint_dir: Path) -> None:
    """As the fp16-fix VAE's ``sdxl_vae.safetensors`` has them: without a prefix."""
    single = load_file(small / "single.safetensors")
    vae = {key.removeprefix(PREFIX["vae"]): v for key, v in single.items() if key.startswith(PREFIX["vae"])}
    save_file(vae, small / "sdxl_vae.safetensors")
    checkpoint = load_checkpoint(
        SDXL,
        base=small / "base",
        control=tiny_checkpoint_dir / "control.safetensors",
        vae=small / "sdxl_vae.safetensors",
    )
    expected = load_file(small / "base/vae/diffusion_pytorch_model.safetensors")
    tensors = checkpoint.networks["vae"].tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
