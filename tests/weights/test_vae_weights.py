"""Bases that lack a VAE or hold one network alone: what ``vae`` makes up for, and what the messages say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.families import Family, get_family
from controlnext.weights import shipped
from controlnext.weights.base import Base, read_base
from support.weights_models import PREFIXES, SDXL, rewrite_json, write_single_file

FAMILIES = pytest.mark.parametrize("name", ["sd15", "svd", "sd3"])


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint_dir: Path) -> Path:
    """The tiny SDXL without text encoders and without its VAE, which is ``vae`` beside it."""
    base = Path(shutil.copytree(tiny_checkpoint_dir / "base", tmp_path / "base"))
    (base / "vae").rename(tmp_path / "vae")
    return base


def test_the_configuration_beside_what_a_link_leads_to_is_read(base: Path, tmp_path: Path) -> None:
    """And before that the one beside the link."""
    rewrite_json(tmp_path / "vae/config.json", scaling_factor=0.5)
    (tmp_path / "linked").mkdir()
    link = tmp_path / "linked/my-vae.safetensors"
    link.symlink_to(tmp_path / "vae/diffusion_pytorch_model.safetensors")
    assert read_base(SDXL, base, link).parts["vae"].config["scaling_factor"] == 0.5
    shutil.copy(tmp_path / "vae/config.json", link.parent)
    rewrite_json(link.parent / "config.json", scaling_factor=0.25)
    assert read_base(SDXL, base, link).parts["vae"].config["scaling_factor"] == 0.25


@pytest.fixture
def single(
    tmp_path: Path, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Family, Path]]:
    """A family, and its tiny checkpoint as a single file with these networks alone (by default all but the
    VAE); the complete base is beside it."""

    def make(name: str, *networks: str) -> tuple[Family, Path]:
        family = get_family(name)
        folder = write_single_file(family, tiny_checkpoint(name) / "base", tmp_path)
        monkeypatch.setattr(shipped, "shipped_directory", lambda _family: folder)
        wanted = networks or [key for key in family.networks if key != "vae"]
        prefixes = tuple(PREFIXES[name][key] for key in wanted)
        path = tmp_path / "single.safetensors"
        save_file({k: v for k, v in load_file(path).items() if k.startswith(prefixes)}, path)
        return family, path

    return make


def refusal(family: Family, path: Path, vae: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_base(family, path, vae)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_vae(base: Base, expected: Path) -> None:
    tensors = base.parts["vae"].tensors
    for name, tensor in load_file(expected / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(tensors[name].read(), tensor)
    assert [source.role for source in base.sources].count("vae") == 1


def test_a_folder_without_a_vae_takes_one(base: Path, tmp_path: Path) -> None:
    for given in (tmp_path / "vae", tmp_path / "vae/diffusion_pytorch_model.safetensors"):
        read = read_base(SDXL, base, given)
        check_vae(read, tmp_path / "vae")
        assert list(read.parts) == ["unet", "vae"]


def test_a_folder_without_a_vae_is_refused_with_the_option(base: Path, tmp_path: Path) -> None:
    assert "it lacks vae/config.json; give another with `vae`" in refusal(SDXL, base)
    (base / "vae").mkdir()
    shutil.copy(tmp_path / "vae/config.json", base / "vae")
    assert "no weights of the vae" in (message := refusal(SDXL, base))
    assert "give another with `vae`" in message


def test_a_directory_without_a_vae_says_what_it_lacks(base: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "nothing").mkdir()
    with pytest.raises(
        CheckpointError, match=r"^nothing has neither config\.json nor vae/config\.json; give"
    ):
        read_base(SDXL, base, empty)


def test_a_vae_that_is_replaced_is_not_looked_at(base: Path, tmp_path: Path) -> None:
    """Whatever is wrong with it; its configuration serves a file without one."""
    (base / "vae").mkdir()
    shutil.copy(tmp_path / "vae/config.json", base / "vae")
    rewrite_json(base / "vae/config.json", force_upcast=False)
    (base / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    alone = Path(
        shutil.copy(tmp_path / "vae/diffusion_pytorch_model.safetensors", tmp_path / "my.safetensors")
    )
    read = read_base(SDXL, base, alone)
    check_vae(read, tmp_path / "vae")
    assert read.parts["vae"].config["force_upcast"] is False


@FAMILIES
def test_a_single_file_without_a_vae_takes_one_and_names_the_option(
    single: Callable[..., tuple[Family, Path]], name: str
) -> None:
    family, path = single(name)
    vae = path.parent / "base/vae"
    alone = Path(shutil.copy(vae / "diffusion_pytorch_model.safetensors", path.parent / "my.safetensors"))
    check_vae(read_base(family, path, alone, family.prompt_encoders), vae)
    assert refusal(family, path).endswith(
        "single.safetensors has no vae; give another with `vae`: a directory, a file or a hub id"
    )


@FAMILIES
def test_a_file_with_the_denoiser_alone_says_what_else_is_needed(
    single: Callable[..., tuple[Family, Path]], name: str
) -> None:
    """Under the names of a checkpoint, and under its own."""
    family, path = single(name, get_family(name).denoiser)
    rest = [key for key in family.networks if key not in (family.denoiser, "vae")]
    message = refusal(family, path)
    assert f"has only a {family.denoiser} and no {', '.join(('vae', *rest))}: give it with" in message
    assert "`unet_weights`, and with `base` a base that has the rest" in message
    assert ("for a bundle that takes embeddings" in message) is (name != "svd")
    prefix = PREFIXES[name][family.denoiser]
    save_file({k.removeprefix(prefix): v for k, v in load_file(path).items()}, path)
    for given in (path, path.parent / f"base/{family.denoiser}/diffusion_pytorch_model.safetensors"):
        message = refusal(family, given, path.parent / "base/vae")
        assert "give it with `unet_weights`, and with `base` a complete checkpoint" in message


def test_a_unet_alone_and_a_vae_are_a_base_that_takes_embeddings(
    single: Callable[..., tuple[Family, Path]],
) -> None:
    family, path = single("sdxl", "unet")
    assert list(read_base(family, path, path.parent / "base/vae").parts) == ["unet", "vae"]


@pytest.mark.parametrize(("inside", "argument"), [("unet", "unet_weights"), ("vae", "vae")])
def test_the_folder_of_one_network_is_no_base(tiny_checkpoint_dir: Path, inside: str, argument: str) -> None:
    message = refusal(SDXL, tiny_checkpoint_dir / "base" / inside)
    assert f"it is only a {inside}: give it with `{argument}`, and with `base`" in message


def test_other_files_given_as_a_base_name_their_argument(tiny_checkpoint_dir: Path) -> None:
    vae = tiny_checkpoint_dir / "base/vae/diffusion_pytorch_model.safetensors"
    assert "not a checkpoint of sdxl but a VAE: give it with `vae`" in refusal(SDXL, vae)
    control = tiny_checkpoint_dir / "control.safetensors"
    assert "give it with `control`, and with `base`" in refusal(SDXL, control)


def test_a_lightning_checkpoint_is_read_as_a_base(single: Callable[..., tuple[Family, Path]]) -> None:
    """As SD1.5 was first published: the tensors under ``state_dict``, beside the state of training."""
    family, path = single("sd15", "unet", "vae")
    tensors = load_file(path)
    content = {"state_dict": tensors, "epoch": 0, "global_step": 875000, "lr_schedulers": []}
    torch.save(content, path.with_suffix(".ckpt"))
    read = read_base(family, path.with_suffix(".ckpt"), None)
    assert list(read.parts) == ["unet", "vae"]
    original = tensors["model.diffusion_model.input_blocks.0.0.weight"]
    assert torch.equal(read.parts["unet"].tensors["conv_in.weight"].read(), original)
