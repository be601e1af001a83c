"""Small single-file checkpoints give the same tensors as directories and diffusers, or are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.families import FAMILIES, Family, get_family
from controlnext.weights import base as bases
from controlnext.weights import shipped
from controlnext.weights.base import Base, read_base
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import canonical, empty_module
from support.full_size import OF_DIFFUSERS, converted_by_diffusers, full_size
from support.weights_models import PREFIXES, SDXL, write_single_file

Small = Callable[[str], tuple[Family, Path]]


@pytest.fixture
def small(tmp_path: Path, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Small:
    """A family and a directory with its tiny ``base`` and the same as ``single.safetensors``; the shipped
    configurations are of these sizes."""

    def make(name: str) -> tuple[Family, Path]:
        family = get_family(name)
        folder = write_single_file(family, tiny_checkpoint(name) / "base", tmp_path)
        monkeypatch.setattr(shipped, "shipped_directory", lambda _family: folder)
        return family, tmp_path

    return make


def read(base: Base, name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.read() for key, tensor in base.parts[name].tensors.items()}


@pytest.mark.export
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_single_file_gives_the_same_values_as_its_folder(small: Small, name: str) -> None:
    family, place = small(name)
    folder, single = (
        read_base(family, place / given, None, ("text_encoder_3",))
        for given in ("base", "single.safetensors")
    )
    assert [source.role for source in single.sources] == ["base"]
    assert set(single.tokenizers) == set(folder.tokenizers)
    assert single.options == folder.options
    assert set(single.parts) == set(folder.parts)
    for key in folder.parts:
        ours, theirs = read(single, key), read(folder, key)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)
        assert all(tensor.is_contiguous() for tensor in ours.values())


@OF_DIFFUSERS
@pytest.mark.export
def test_diffusers_gives_a_small_single_file_the_same_values(small: Small, family: Family) -> None:
    _family, place = small(family.name)
    base, single = read_base(family, place / "base", None), load_file(place / "single.safetensors")
    for name, network in family.networks.items():
        module = empty_module(network, base.parts[name].config)
        theirs = converted_by_diffusers(family, name, module, single)
        theirs = {canonical(key): tensor for key, tensor in theirs.items()}
        ours = {canonical(key): tensor for key, tensor in read(base, name).items()}
        assert ours.keys() - theirs.keys() <= {"text_projection.weight"}
        for key in ours.keys() & theirs.keys():
            assert torch.equal(ours[key], theirs[key].reshape(ours[key].shape)), key


@pytest.mark.export
def test_t5_of_a_single_file_is_left_out_and_the_remedy_named(
    small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    """T5's vocabulary is not shipped, and a single file has none."""
    family, place = small("sd3")
    base = read_base(family, place / "single.safetensors", None)
    assert set(base.tokenizers) == {"tokenizer", "tokenizer_2"}
    assert "text_encoder_3" not in base.parts
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("controlnext")]
    assert "text_encoder_3 is left out" in message
    assert "give a diffusers directory to keep it, or `leave_out`" in message
    caplog.clear()
    assert (
        "text_encoder_3"
        not in read_base(family, place / "single.safetensors", None, ["text_encoder_3"]).parts
    )
    assert not caplog.records


def test_an_sd3_file_without_text_encoders_is_complete(
    small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    family, place = small("sd3")
    path = place / "single.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("text_encoders.")}, path)
    assert set(read_base(family, path, None).parts) == {"transformer", "vae"}
    assert not caplog.records


@pytest.mark.export
def test_sd3s_first_clip_has_no_projection_whatever_a_file_holds(small: Small) -> None:
    """Some files hold OpenAI's, which SD3 was not trained with; diffusers too takes the identity."""
    family, place = small("sd3")
    path = place / "single.safetensors"
    name = "text_encoders.clip_l.transformer.text_projection.weight"
    save_file({**load_file(path), name: torch.zeros(16, 16)}, path)
    projection = read(read_base(family, path, None), "text_encoder")["text_projection.weight"]
    assert torch.equal(projection, torch.eye(16))


def test_unknown_tensors_in_a_section_are_refused(small: Small) -> None:
    _family, place = small("sdxl")
    path = place / "single.safetensors"
    save_file({**load_file(path), "first_stage_model.encoder.extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"vae does not fit: 1 unexpected \(encoder.extra.weight\)"):
        read_base(SDXL, path, None)


LOOKS = {
    "sd15": "a complete SD1.x checkpoint",
    "sdxl": "a complete SDXL checkpoint",
    "sd3": "a complete SD3 checkpoint",
    "svd": "a complete SVD checkpoint",
}


# each family once on either side; of directories every pair is tried
@pytest.mark.export
@pytest.mark.parametrize(("wanted", "given"), list(itertools.pairwise([*FAMILIES, next(iter(FAMILIES))])))
def test_a_checkpoint_of_another_family_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, given: str
) -> None:
    lazy = {name: LazyTensor.from_tensor(tensor) for name, tensor in full_size(given).checkpoint.items()}
    monkeypatch.setattr(bases, "read_weights", lambda *_arguments: (lazy, []))
    file = tmp_path / "single.safetensors"
    file.touch()
    with pytest.raises(
        CheckpointError, match=f"does not fit: .*the file looks like {LOOKS[given]}"
    ) as caught:
        read_base(get_family(wanted), file, None)
    assert "\n" not in str(caught.value)


@pytest.mark.export
def test_a_vae_under_original_names(small: Small) -> None:
    """As the fp16-fix VAE's ``sdxl_vae.safetensors`` has them, without a prefix; and in a checkpoint."""
    _family, place = small("sdxl")
    single, prefix = load_file(place / "single.safetensors"), PREFIXES["sdxl"]["vae"]
    vae = {key.removeprefix(prefix): v for key, v in single.items() if key.startswith(prefix)}
    save_file(vae, place / "sdxl_vae.safetensors")
    expected = load_file(place / "base/vae/diffusion_pytorch_model.safetensors")
    for name in ("sdxl_vae.safetensors", "single.safetensors"):
        found = read(read_base(SDXL, place / "base", place / name), "vae")
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
