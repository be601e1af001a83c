"""Deterministic tiny models and inputs behind the reference vectors in ``golden``.

Every number comes from NumPy's frozen ``RandomState`` stream: the same weights and inputs appear on every
machine without being stored. ``golden/README.md`` says what each case means.
"""

from __future__ import annotations

import inspect
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
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

LATENTS = {"fp32": 2e-4, "fp16": 1e-2}
PIXELS = {"fp32": 0.5 / 255, "fp16": 8 / 255}
"""Limits of whole runs against recorded ones: relative L2 of latents, largest difference of a pixel."""
GOLDEN = Path(__file__).parents[1] / "golden"


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Set every floating-point tensor of ``module.state_dict()``; return the module in eval mode."""
    state = module.state_dict()
    module.load_state_dict(
        {**state, **numbers({n: t.shape for n, t in state.items() if t.is_floating_point()}, seed)}
    )
    return module.eval()


def numbers(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Return values for tensors of these names and shapes, drawn in sorted name order.

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
        values[name] = torch.from_numpy(np.asarray(x, np.float32).reshape(shape))
    return values


def rand(seed: int, *shape: int, kind: str = "normal") -> np.ndarray:
    """Return a float32 array of ``shape`` from ``RandomState(seed)``: standard normal, or uniform in [0,
    1)."""
    rng = np.random.RandomState(seed)
    x = rng.standard_normal(shape) if kind == "normal" else rng.random_sample(shape)
    return x.astype(np.float32)


def drawing(seed: int, width: int, height: int) -> Image.Image:
    """Return an RGB control image of 8-pixel squares, each channel 0 or 255."""
    squares = np.random.RandomState(seed).random_sample((height // 8, width // 8, 3)) > 0.5
    pixels = (squares * 255).astype(np.uint8)
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1))


def read_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the description and the tensors of ``golden/<name>.safetensors``."""
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["spec"]), load_file(path)


def control_tensors(variant: str, last_width: int, seed: int) -> dict[str, torch.Tensor]:
    """Return control weights in the published layout, the last convolution narrowed to ``last_width``."""
    keys = "sdxl" if variant == "sd3" else variant
    shapes = json.loads((GOLDEN / "keys" / f"{keys}.json").read_text())
    shapes["mid_convs.1.weight"][0] = shapes["mid_convs.1.bias"][0] = last_width
    return numbers(shapes, seed)


VARIANTS = {
    "sd15": ("sd15", "down"),
    "sd15-mid": ("sd15", "mid"),
    "sdxl": ("sdxl", "sdxl"),
    "svd": ("svd", "v2"),
    "svd-v1": ("svd", "v1"),
    "sd3": ("sd3", "sd3"),
}
"""Family and variant of each tiny model."""

FAMILY_VARIANTS = ("sd15", "sdxl", "svd", "sd3")
"""A variant of each family."""

_SD3 = {
    "transformer": {
        "sample_size": 32,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 40,
        "pos_embed_max_size": 48,
    },
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 32, 32),
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 8,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": True,
    },
}
"""Sizes for SD3, for which there are no recordings."""


_SVD_V1 = {
    "sample_size": 16,
    "down_block_types": ("DownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "num_attention_heads": (2, 4),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 3,
}
"""Configuration of the denoiser of whole models of SVD's first release, of which no run was recorded."""


def tiny_networks(variant: str) -> dict[str, nn.Module]:
    """Make the denoiser and the VAE (and SVD's image encoder) of the reference vectors."""
    if variant == "sd3":
        return {
            "transformer": fill(diffusers.SD3Transformer2DModel(**_SD3["transformer"]), 7),
            "vae": fill(diffusers.AutoencoderKL(**_SD3["vae"]), 9),
        }
    spec, pipeline = read_golden(variant)[0], read_golden(f"{_recorded_runs(variant)}-pipeline")[0]
    video = "image_encoder_config" in pipeline
    unet = diffusers.UNetSpatioTemporalConditionModel if video else diffusers.UNet2DConditionModel
    vae = diffusers.AutoencoderKLTemporalDecoder if video else diffusers.AutoencoderKL
    networks = {
        "unet": fill(unet(**_tuples(spec["unet_config"])), spec["unet_seed"]),
        "vae": fill(vae(**_tuples(pipeline["vae_config"])), pipeline["vae_seed"]),
    }
    if video:
        config = CLIPVisionConfig(**pipeline["image_encoder_config"])
        networks["image_encoder"] = fill(
            CLIPVisionModelWithProjection(config), pipeline["image_encoder_seed"]
        )
    return networks


def _recorded_runs(variant: str) -> str:
    """Return the recording for a variant's base; the first SVD release has the base of the second."""
    return "svd" if variant == "svd-v1" else variant


_BASES = {
    "sd15": (diffusers.StableDiffusionPipeline, {"requires_safety_checker": False}),
    "sdxl": (diffusers.StableDiffusionXLPipeline, {"add_watermarker": False}),
    "svd": (diffusers.StableVideoDiffusionPipeline, {}),
    "sd3": (diffusers.StableDiffusion3Pipeline, {}),
}


def write_checkpoint(variant: str, directory: Path) -> Path:
    """Write the tiny base without text encoders (``base/``, diffusers layout) and ``control.safetensors``."""
    cls, options = _BASES[VARIANTS[variant][0]]
    if variant == "sd3":
        scheduler, width, seed = {"shift": 3.0, "num_train_timesteps": 1000}, 32, 8
        made = diffusers.FlowMatchEulerDiscreteScheduler(**scheduler)
    else:
        scheduler = read_golden(f"{_recorded_runs(variant)}-pipeline")[0]["scheduler_config"]
        spec = read_golden(variant)[0]
        width, seed = spec["control_last_width"], spec["control_seed"]
        kind = "EulerDiscreteScheduler" if variant.startswith("svd") else "UniPCMultistepScheduler"
        made = getattr(diffusers, kind).from_config(scheduler)
    parts = {**tiny_networks(variant), **options, "scheduler": made}
    if variant.startswith("svd"):
        parts["feature_extractor"] = CLIPImageProcessor()
    if variant == "svd-v1":
        parts["unet"] = fill(diffusers.UNetSpatioTemporalConditionModel(**_SVD_V1), 11)
    required = [n for n, p in inspect.signature(cls).parameters.items() if p.default is p.empty]
    base = cls(**dict.fromkeys(required) | parts)
    base.save_pretrained(directory / "base")
    # the configuration as the cases use it, without the defaults that the class above added
    config = directory / "base" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": type(made).__name__, **scheduler}))
    save_file(control_tensors(variant, width, seed), directory / "control.safetensors")
    return directory


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
