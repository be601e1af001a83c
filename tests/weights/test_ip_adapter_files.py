"""IP-Adapters' files: which are read, and which are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError, ControlNeXtError, InputError
from controlnext.families import get_family
from controlnext.weights import load_checkpoint
from controlnext.weights.ip_adapter import random_adapters
from controlnext.weights.shipped import shipped_config
from support.exports import once
from support.prompted import Prompted, write_prompted


@pytest.fixture(scope="module")
def prompted(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Prompted:
    def make(directory: Path) -> None:
        write_prompted("sd15", tiny_checkpoint, directory)

    return Prompted("sd15", once(shared_folder / "prompted-sd15", make))


def loaded(model: Prompted, *adapters: object, **changes: Any) -> Any:
    options = {"base": model.directory / "base", "control": model.directory / "control.safetensors"}
    family = get_family(changes.pop("family", model.family))
    return load_checkpoint(family, **{**options, **changes}, ip_adapter=[str(one) for one in adapters])


def test_a_pickle_has_the_same_adapter(prompted: Prompted, tmp_path: Path) -> None:
    """Published .bin files nest their tensors."""
    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(prompted.directory / "plus.safetensors").items():
        group, _, inside = name.partition(".")
        nested[group][inside] = tensor
    torch.save(nested, tmp_path / "plus.bin")
    encoder = prompted.directory / "image_encoder"
    (own,) = loaded(prompted, tmp_path / "plus.bin", ip_adapter_image_encoder=encoder).adapters
    (other,) = prompted.checkpoint(["plus"]).adapters
    assert own.spec == other.spec
    assert all(torch.equal(own.tensors[name], other.tensors[name]) for name in other.tensors)


REFUSED = {
    "FaceID": ({"image_proj.proj.0.weight": (4, 4), "image_proj.proj.2.weight": (4, 4)}, "IP-Adapter FaceID"),
    "Full": ({"image_proj.proj.0.weight": (4, 4), "image_proj.proj.3.weight": (4, 4)}, "IP-Adapter Full"),
    "a LoRA": ({"unet.a.lora_A.weight": (4, 4)}, "is not an IP-Adapter: it lacks"),
    "empty": ({}, "is not an IP-Adapter: it lacks"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused(prompted: Prompted, tmp_path: Path, kind: str) -> None:
    shapes, message = REFUSED[kind]
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.safetensors")
    error = refused(prompted, tmp_path / "x.safetensors")
    assert message in str(error)
    assert error.argument == "ip_adapter"


def refused(model: Prompted, *adapters: object, **changes: Any) -> ControlNeXtError:
    with pytest.raises((CheckpointError, InputError)) as caught:
        loaded(model, *adapters, **changes)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_resampler_of_fewer_layers_is_refused(prompted: Prompted, tmp_path: Path) -> None:
    """Diffusers' class has the published number of them."""
    tensors = load_file(prompted.directory / "plus.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "image_proj.layers.3." not in name}
    save_file(kept, tmp_path / "short.safetensors")
    error = refused(prompted, tmp_path / "short.safetensors")
    assert "short.safetensors has a resampler of 3 layers; accepted: the 4 of IP-Adapter Plus" in str(error)


def test_what_does_not_fit_is_refused(prompted: Prompted, tmp_path: Path) -> None:
    tensors = load_file(prompted.directory / "base.safetensors")
    cut = {name: tensor for name, tensor in tensors.items() if not name.startswith("ip_adapter.3.")}
    save_file(cut, tmp_path / "other.safetensors")
    assert "is an IP-Adapter of another family" in str(refused(prompted, tmp_path / "other.safetensors"))
    save_file(tensors, tmp_path / "alone.safetensors")
    (tmp_path / "other.safetensors").unlink()
    alone = refused(prompted, tmp_path / "alone.safetensors")
    assert "no image_encoder is beside" in str(alone)
    assert alone.argument == "ip_adapter_image_encoder"
    assert "no such file or directory" in str(refused(prompted, tmp_path / "missing.safetensors"))
    directory = str(refused(prompted, prompted.directory))
    assert "is a directory with" in directory
    assert "a.safetensors" in directory


def test_an_encoder_of_another_width_is_refused(prompted: Prompted, tmp_path: Path) -> None:
    tensors = load_file(prompted.directory / "base.safetensors")
    wide = tensors["image_proj.proj.weight"]
    save_file({**tensors, "image_proj.proj.weight": torch.cat([wide, wide], 1)}, tmp_path / "x.safetensors")
    error = refused(
        prompted, tmp_path / "x.safetensors", ip_adapter_image_encoder=prompted.directory / "image_encoder"
    )
    assert "reads images of width 48, but the image encoder image_encoder has projection_dim 24" in str(error)
    assert error.argument == "ip_adapter_image_encoder"


def test_an_encoder_without_an_adapter_is_refused(prompted: Prompted) -> None:
    error = refused(prompted, ip_adapter_image_encoder=prompted.directory / "image_encoder")
    assert "`ip_adapter`, which is not given" in str(error)


def test_random_weights_take_kinds() -> None:
    """At the published sizes."""
    family = get_family("sd15")
    unet = shipped_config(family, family.networks["unet"])
    found = random_adapters(family, unet, ["base", "plus"], 0)
    assert found is not None
    base, plus = (adapter.spec for adapter in found.weights)
    assert (base.embedding, base.tokens, base.width, len(base.layers)) == ((1024,), 4, 768, 16)
    assert (plus.embedding, plus.tokens, plus.hidden, plus.heads) == ((257, 1280), 16, 768, 12)
    with pytest.raises(InputError, match="accepted with `random_seed`: base, plus"):
        random_adapters(family, unet, ["x.safetensors"], 0)
    with pytest.raises(InputError, match="takes no IP-Adapters; remove `ip_adapter`"):
        random_adapters(get_family("sd3"), unet, ["base"], 0)
