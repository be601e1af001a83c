"""Tiny VAEs are read in every layout in which they are published, in place of a VAE and beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from controlnext.errors import CheckpointError, InputError
from controlnext.families import get_family
from controlnext.weights import load_checkpoint
from controlnext.weights.base import Base, random_base, read_base
from support.tiny_vaes import original, save_originals, save_tiny, tiny_vae
from support.weights_models import SDXL


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_vae()


@pytest.fixture
def base(tiny_checkpoint_dir: Path) -> Path:
    """The tiny SDXL without text encoders."""
    return tiny_checkpoint_dir / "base"


def check(base: Base, name: str, expected: Any, halves: tuple[str, ...] = ("encoder", "decoder")) -> None:
    part = base.parts[name]
    assert part.config["_class_name"] == "AutoencoderTiny"
    for key, tensor in expected.state_dict().items():
        read = part.tensors[key].read()
        assert torch.equal(read, tensor if key.startswith(halves) else torch.zeros_like(tensor)), key


def refusal(base: Path, family: str = "sdxl", **given: Any) -> str:
    with pytest.raises((CheckpointError, InputError)) as caught:
        read_base(get_family(family), base, **{"vae": None, **given})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_diffusers_is_read_for_both(base: Path, vae: Any, tmp_path: Path) -> None:
    """One that says nothing of its shift too, as before that key was known."""
    folder = save_tiny(vae, tmp_path / "taesd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "shift_factor"}))
    read = read_base(SDXL, base, folder, preview_vae=folder)
    check(read, "vae", vae)
    check(read, "preview_vae", vae)
    assert read.parts["vae"].config["shift_factor"] == 0.0
    assert [source.role for source in read.sources].count("preview_vae") == 1
    assert read.parts["vae"].config["latent_channels"] == 4


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_of_the_original_are_read_together(base: Path, vae: Any, tmp_path: Path, suffix: str) -> None:
    """Whichever is named; both are in the manifest."""
    decoder = save_originals(vae, tmp_path / "taesd", suffix)
    for file in (decoder, decoder.with_name(f"taesd_encoder{suffix}")):
        read = read_base(SDXL, base, file)
        check(read, "vae", vae)
        names = sorted(source.name for source in read.sources if source.role == "vae")
        assert len(names) == 2


def test_files_without_a_configuration_have_the_published_sizes(base: Path, tmp_path: Path) -> None:
    vae = diffusers.AutoencoderTiny(latent_channels=16)
    decoder = save_originals(vae, tmp_path / "taesd3", config=False)
    check(_read_preview("sd3", decoder), "preview_vae", vae)
    message = refusal(base, preview_vae=decoder)
    assert "preview_vae does not fit: 3 mis-shaped" in message
    assert "decoder.layers.0.weight [64, 16, 3, 3] for [64, 4, 3, 3]" in message


def _read_preview(family: str, file: Path) -> Base:
    from controlnext.weights.vae import read_preview_vae

    part, sources = read_preview_vae(get_family(family), file)
    return Base(None, {}, {"preview_vae": part}, sources=sources)  # type: ignore[arg-type]


def test_files_of_diffusers_names_and_comfyuis_are_read(base: Path, vae: Any, tmp_path: Path) -> None:
    """ComfyUI's has the scaling of the full VAE, of which a tiny one knows nothing."""
    vae.save_config(tmp_path)
    save_file(vae.state_dict(), tmp_path / "mine.safetensors")
    joined = {
        f"taesd_{half}.{name}": tensor
        for half in ("encoder", "decoder")
        for name, tensor in original(vae, half).items()
    }
    scale = {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
    save_file(joined | scale, tmp_path / "combined.safetensors")
    for name in ("mine", "combined"):
        check(read_base(SDXL, base, tmp_path / f"{name}.safetensors"), "vae", vae)


def test_previews_need_a_decoder_alone(base: Path, vae: Any, tmp_path: Path) -> None:
    decoder = save_originals(vae, tmp_path / "taesd")
    decoder.with_name("taesd_encoder.safetensors").rename(tmp_path / "taesd_encoder.safetensors")
    check(read_base(SDXL, base, None, preview_vae=decoder), "preview_vae", vae, ("decoder",))
    message = refusal(base, vae=decoder)
    assert "taesd_decoder.safetensors has no encoder of a tiny VAE; put it beside it as" in message
    shutil.copy(decoder.with_name("config.json"), tmp_path)
    assert "has no decoder of a tiny VAE" in refusal(base, preview_vae=tmp_path / "taesd_encoder.safetensors")


def test_a_base_may_come_with_a_tiny_vae(base: Path, vae: Any, tmp_path: Path) -> None:
    """As diffusers saves a pipeline whose VAE was replaced, and read from there for previews."""
    own = Path(shutil.copytree(base, tmp_path / "base"))
    shutil.rmtree(own / "vae")
    save_tiny(vae, own / "vae")
    index = json.loads((own / "model_index.json").read_text())
    (own / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderTiny"]}))
    check(read_base(SDXL, own, None), "vae", vae)
    check(read_base(SDXL, base, None, preview_vae=own), "preview_vae", vae)


def test_clips_have_a_tiny_vae_for_previews_alone(
    tiny_checkpoint: Callable[[str], Path], vae: Any, tmp_path: Path
) -> None:
    base, folder = tiny_checkpoint("svd") / "base", save_tiny(vae, tmp_path / "taesd")
    for given in (folder, folder / "diffusion_pytorch_model.safetensors"):
        message = refusal(base, "svd", vae=given)
        assert (
            "its vae is AutoencoderTiny, expected AutoencoderKLTemporalDecoder; give a VAE of Stable"
            in message
        )
        assert message.endswith("and this one for previews with `preview_vae`")
    check(read_base(get_family("svd"), base, None, preview_vae=folder), "preview_vae", vae)


def test_what_is_no_tiny_vae_of_the_family_is_refused(base: Path, vae: Any, tmp_path: Path) -> None:
    kl = base / "vae"
    message = refusal(base, preview_vae=kl)
    assert message.endswith("its preview_vae is AutoencoderKL, expected AutoencoderTiny; give a tiny VAE")
    file = kl / "diffusion_pytorch_model.safetensors"
    assert "looks like a VAE; previews need a tiny VAE of Stable Diffusion XL" in refusal(
        base, preview_vae=file
    )
    wide = save_tiny(tiny_vae(16), tmp_path / "taesd3")
    assert "latent_channels is 16, expected 4" in refusal(base, vae=wide)
    shifted = save_tiny(vae, tmp_path / "shifted", shift_factor=0.1)
    assert "shift_factor is 0.1, expected 0.0" in refusal(base, vae=shifted)
    smooth = save_tiny(vae, tmp_path / "smooth", upsample_fn="bilinear")
    assert "upsample_fn='bilinear', which is not supported" in refusal(base, preview_vae=smooth)


def test_random_weights_have_a_tiny_vae_of_their_own(vae: Any, tmp_path: Path) -> None:
    config = random_base(replace(SDXL, networks={}), 0).parts["preview_vae"].config
    assert config["decoder_block_out_channels"] == [64, 64, 64, 64]
    with pytest.raises(InputError, match="random weights replace every file: remove `preview_vae`"):
        load_checkpoint(SDXL, random_seed=0, preview_vae=save_tiny(vae, tmp_path / "taesd"))
