"""Tiny networks, and LoRAs for them in every published naming scheme."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from controlnext.families import Family, get_family
from controlnext.weights.base import Base, Part
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.shipped import original_layout
from support.recipe import fill, tiny_networks

SD15, SDXL, SD3 = (get_family(name) for name in ("sd15", "sdxl", "sd3"))
RANK = 4
# layers that published LoRAs have: attention, feed-forward, projections; in "LoCon" files convolutions too
LAYERS = re.compile(
    r"attn|_proj$|proj_(in|out)$|\.ff|fc[12]|conv(\d|_in|_out|_shortcut)?$|add_embedding|time_embedding"
)


def text_encoder(cls: Any, seed: int) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return fill(cls(CLIPTextConfig(vocab_size=100, projection_dim=24, **sizes)), seed)


def networks(family: Family) -> dict[str, nn.Module]:
    """Make the tiny networks of a family that LoRAs are trained for."""
    if family is SDXL:
        return {
            "unet": tiny_networks("sdxl")["unet"],
            "text_encoder": text_encoder(CLIPTextModel, 1),
            "text_encoder_2": text_encoder(CLIPTextModelWithProjection, 2),
        }
    if family is SD15:
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        return {"unet": fill(unet, 0), "text_encoder": text_encoder(CLIPTextModel, 1)}
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=48,
        pos_embed_max_size=8,
    )
    encoders = {f"text_encoder{n}": text_encoder(CLIPTextModelWithProjection, 1) for n in ("", "_2")}
    return {"transformer": fill(transformer, 0), **encoders}


def base_of(family: Family, modules: dict[str, nn.Module]) -> Base:
    base = Base({}, {})
    for name, module in modules.items():
        config = dict(module.config) if name == family.denoiser else module.config.to_dict()
        tensors = {key: LazyTensor.from_tensor(value.clone()) for key, value in module.state_dict().items()}
        base.parts[name] = Part(config, tensors)
    return base


def low_rank(modules: dict[str, nn.Module], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return matrices (down, up) for the layers of the networks, by ``network.layer``."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for network, module in modules.items():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and LAYERS.search(name):
                out, *rest = layer.weight.shape
                down = torch.randn(RANK, *rest, generator=generator) / 8
                up = torch.randn(out, RANK, *[1] * len(rest[1:]), generator=generator) / 8
                pairs[f"{network}.{name}"] = (down, up)
    return pairs


def as_peft(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    named = {}
    for name, (down, up) in pairs.items():
        named |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return named


def as_first_diffusers(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the LoRA under the names of 2023: attention layers as ``processor.to_q_lora.down``."""
    named = {}
    for name, (down, up) in pairs.items():
        stem = re.sub(r"(attn\d)\.(to_[qkv]|to_out)(\.0)?$", r"\1.processor.\2_lora", name)
        stem = re.sub(r"(q|k|v|out)_proj$", r"to_\1_lora", stem)
        if not stem.endswith("_lora"):
            stem += ".lora_linear_layer" if name.startswith("text_encoder") else ".lora"
        named |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return named


def as_kohya(
    pairs: dict[str, tuple[Tensor, Tensor]], alpha: float = 1.0, sgm: Any = None
) -> dict[str, Tensor]:
    """Return the LoRA under sd-scripts' names, for the original UNet layout (``sgm``) or for diffusers'."""
    named = {}
    for name, (down, up) in pairs.items():
        network, _, layer = name.partition(".")
        if network == "unet":
            prefix = "lora_unet"
            layer = sgm(f"{layer}.weight").name.removesuffix(".weight") if sgm else layer
        else:
            first = "lora_te1" if sgm else "lora_te"
            prefix = {"text_encoder": first, "text_encoder_2": "lora_te2"}[network]
            layer = layer if layer.startswith("text_") else f"text_model.{layer}"
        stem = f"{prefix}_{layer.replace('.', '_')}"
        named |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        named[f"{stem}.alpha"] = torch.tensor(alpha)
    return named


def sgm_of(modules: dict[str, nn.Module]) -> Any:
    return original_layout(SDXL, "unet", dict(modules["unet"].config))


def stock(
    family: Family, modules: dict[str, nn.Module], files: dict[Path, float]
) -> dict[str, dict[str, Tensor]]:
    """The networks' tensors after diffusers' own pipeline has loaded and fused these LoRAs."""
    cls = getattr(diffusers, family.pipeline_class)
    required = (p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty)
    given = {**family.pipeline_options, **modules, "scheduler": diffusers.DDIMScheduler()}
    pipeline = cls(**{**dict.fromkeys(required), **given})
    for file, scale in files.items():
        pipeline.load_lora_weights(str(file))
        pipeline.fuse_lora(components=list(modules), lora_scale=scale)
        pipeline.unload_lora_weights()
    return {name: dict(module.state_dict()) for name, module in modules.items()}


def assert_fused(base: Base, expected: dict[str, dict[str, Tensor]], before: Base, layers: int) -> None:
    """Every tensor is as expected up to float32's rounding, and as many as there are layers have changed."""
    changed = 0
    for network, tensors in expected.items():
        assert base.parts[network].tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            fused = base.parts[network].tensors[name].read()
            torch.testing.assert_close(fused, tensor, rtol=1e-5, atol=1e-6)
            changed += not torch.equal(fused, before.parts[network].tensors[name].read())
    assert changed == layers
