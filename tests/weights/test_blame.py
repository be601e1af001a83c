"""Which argument of ``load_checkpoint`` an error says is at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlnext.errors import InputError
from controlnext.weights import load_checkpoint
from support.weights_models import SDXL


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"base": "nowhere"}, "base"),
        ({"base": "{files}/control.safetensors"}, "base"),
        ({"control": "nowhere"}, "control"),
        ({"control": "{files}/base/vae"}, "control"),
        ({"variant": "mid"}, "variant"),
        ({"unet_weights": "nowhere"}, "unet_weights"),
        ({"unet_weights": "{files}/control.safetensors"}, "unet_weights"),
        ({"unet_increments": True}, "unet_weights"),
        ({"unet_weights": "{files}/base/unet", "unet_increments": True}, "unet_increments"),
        ({"vae": "nowhere"}, "vae"),
        ({"vae": "{files}/control.safetensors"}, "vae"),
        ({"lora": ["nowhere"]}, "lora"),
        ({"lora": ["{files}/control.safetensors"]}, "lora"),
        ({"scheduler": {"beta": 1}}, "scheduler"),
        ({"scheduler": {"prediction_type": "x"}}, "scheduler"),
        ({"control": None}, "control"),
        ({"random_seed": 0}, "random_seed"),
    ],
)
def test_the_argument_at_fault(tiny_checkpoint_dir: Path, changes: dict[str, object], argument: str) -> None:
    """Whatever level finds it; the file of one argument may be read while another is."""
    files = tiny_checkpoint_dir
    given = {"base": files / "base", "control": files / "control.safetensors", **changes}
    given = {key: _filled(value, files) for key, value in given.items()}
    with pytest.raises(InputError) as caught:
        load_checkpoint(SDXL, **given)
    assert caught.value.argument == argument, caught.value


def _filled(value: object, files: Path) -> object:
    if isinstance(value, list):
        return [_filled(one, files) for one in value]
    return value.format(files=files) if isinstance(value, str) else value
