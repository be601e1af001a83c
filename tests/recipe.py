"""Deterministic tiny models and inputs behind the reference vectors in ``golden``.

Every number comes from NumPy's frozen ``RandomState`` stream: the same weights and inputs appear on every
machine without being stored. ``golden/README.md`` says what each case means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

GOLDEN = Path(__file__).parent / "golden"


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Give every floating-point tensor of ``module.state_dict()`` its value; returns it in eval mode."""
    state = module.state_dict()
    module.load_state_dict(
        {**state, **numbers({n: t.shape for n, t in state.items() if t.is_floating_point()}, seed)}
    )
    return module.eval()


def numbers(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Values for tensors of these names and shapes, drawn in sorted name order.

    A matrix or kernel of fan-in f gets N(0, 1/f); a one-dimensional ``*weight`` (a norm's gain) and a scalar
    get 1 + 0.1 N(0, 1); every other vector (a bias) gets 0.1 N(0, 1).
    """
    rng = np.random.RandomState(seed)
    values = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        x = np.asarray(rng.standard_normal(shape or None))
        if len(shape) >= 2:
            x = x / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight") or not shape:
            x = 1.0 + 0.1 * x
        else:
            x = 0.1 * x
        values[name] = torch.from_numpy(x.astype(np.float32).reshape(shape))
    return values


def rand(seed: int, *shape: int, kind: str = "normal") -> np.ndarray:
    """float32 array of ``shape`` from ``RandomState(seed)``: standard normal, or uniform in [0, 1)."""
    rng = np.random.RandomState(seed)
    x = rng.standard_normal(shape) if kind == "normal" else rng.random_sample(shape)
    return x.astype(np.float32)


def drawing(seed: int, width: int, height: int) -> Image.Image:
    """RGB control picture: 8-pixel squares, each channel 0 or 255."""
    squares = np.random.RandomState(seed).random_sample((height // 8, width // 8, 3)) > 0.5
    pixels = (squares * 255).astype(np.uint8)
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1))


def read_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the tensors of ``golden/<name>.safetensors``."""
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["spec"]), load_file(path)


def control_tensors(variant: str, last_width: int, seed: int) -> dict[str, torch.Tensor]:
    """A control checkpoint of the published layout, its last convolution narrowed to ``last_width``."""
    shapes = json.loads((GOLDEN / "keys" / f"{variant}.json").read_text())
    shapes["mid_convs.1.weight"][0] = shapes["mid_convs.1.bias"][0] = last_width
    return numbers(shapes, seed)


def tiny_networks(variant: str) -> dict[str, nn.Module]:
    """The UNet and the VAE of the reference vectors."""
    spec, pipeline = read_golden(variant)[0], read_golden(f"{variant}-pipeline")[0]
    return {
        "unet": fill(diffusers.UNet2DConditionModel(**_tuples(spec["unet_config"])), spec["unet_seed"]),
        "vae": fill(diffusers.AutoencoderKL(**_tuples(pipeline["vae_config"])), pipeline["vae_seed"]),
    }


def write_checkpoint(variant: str, folder: Path) -> Path:
    """The tiny base without text encoders (``base/``, diffusers layout) and ``control.safetensors``."""
    spec, pipeline = read_golden(variant)[0], read_golden(f"{variant}-pipeline")[0]
    base = diffusers.StableDiffusionXLPipeline(
        **tiny_networks(variant),
        scheduler=diffusers.UniPCMultistepScheduler.from_config(pipeline["scheduler_config"]),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
    base.save_pretrained(folder / "base")
    # the configuration as the cases use it, without the defaults that the class above added
    config = folder / "base" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", **pipeline["scheduler_config"]}))
    control = control_tensors(variant, spec["control_last_width"], spec["control_seed"])
    save_file(control, folder / "control.safetensors")
    return folder


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
