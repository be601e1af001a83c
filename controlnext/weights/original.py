"""Original (LDM, OpenCLIP, MMDiT) tensor names of the networks that diffusers and transformers renamed.

Every name that a network expects is converted to its original name, so that any other name in the file is
known to be unexpected, and a part of a network converts like the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from controlnext.weights.lazy import LazyTensor


@dataclass(frozen=True)
class Origin:
    """The source of a tensor in an original checkpoint: its name there, and the part of it to ``take``."""

    name: str
    take: Callable[[Tensor], Tensor] | None = None


Layout = Callable[[str], Origin]
"""Maps today's name of a tensor to its origin."""

_RESNET = (
    (r"^spatial_res_block\.", r""),
    (r"^temporal_res_block\.", r"time_stack."),
    (r"\bnorm1\.", r"in_layers.0."),
    (r"\bconv1\.", r"in_layers.2."),
    (r"\btime_emb_proj\.", r"emb_layers.1."),
    (r"\bnorm2\.", r"out_layers.0."),
    (r"\bconv2\.", r"out_layers.3."),
    (r"\bconv_shortcut\.", r"skip_connection."),
)
_ATTENTION = (
    (r"^temporal_transformer_blocks\.", r"time_stack."),
    (r"^time_pos_embed\.linear_1\.", r"time_pos_embed.0."),
    (r"^time_pos_embed\.linear_2\.", r"time_pos_embed.2."),
)
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_BLOCK = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.*)")

_VAE = (
    (r"^(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.resnets\.0\.", r".block_1."),
    (r"\.resnets\.1\.", r".block_2."),
    (r"\.mid_block\.attentions\.0\.", r".mid_block.attn_1."),
    (r"\.mid_block\.", r".mid."),
    (r"\.conv_shortcut\.", r".nin_shortcut."),
    (r"\.group_norm\.", r".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", r".proj_out."),
    (r"\.spatial_res_block\.", r"."),
    (r"\.time_mixer\.mix_factor$", r".mix_factor"),
    (r"\.time_conv_out\.", r".conv_out.time_mix_conv."),
)
_VAE_UP = re.compile(r"\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.")

_OPEN_CLIP = (
    (r"^(text|vision)_model\.", r""),
    (r"^encoder\.layers\.", r"transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", r".mlp.c_fc."),
    (r"\.mlp\.fc2\.", r".mlp.c_proj."),
    (r"\.self_attn\.", r".attn."),
    (r"^embeddings\.token_embedding\.", r"token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", r"positional_embedding"),
    (r"^final_layer_norm\.", r"ln_final."),
    (r"^embeddings\.class_embedding$", r"class_embedding"),
    (r"^embeddings\.patch_embedding\.", r"conv1."),
    (r"^pre_layrnorm\.", r"ln_pre."),
    (r"^post_layernorm\.", r"ln_post."),
)
_OPEN_CLIP_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "proj"}
_PROJECTION = re.compile(r"\.([qkv])_proj\.(weight|bias)$")

_MMDIT = (
    (r"^pos_embed\.pos_embed$", r"pos_embed"),
    (r"^pos_embed\.proj\.", r"x_embedder.proj."),
    (r"^time_text_embed\.timestep_embedder\.", r"t_embedder."),
    (r"^time_text_embed\.text_embedder\.", r"y_embedder."),
    (r"_embedder\.linear_1\.", r"_embedder.mlp.0."),
    (r"_embedder\.linear_2\.", r"_embedder.mlp.2."),
    (r"^transformer_blocks\.", r"joint_blocks."),
    (r"\.attn\.to_[qkv]\.", r".x_block.attn.qkv."),
    (r"\.attn\.add_[qkv]_proj\.", r".context_block.attn.qkv."),
    (r"\.attn\.to_out\.0\.", r".x_block.attn.proj."),
    (r"\.attn\.to_add_out\.", r".context_block.attn.proj."),
    (r"\.norm1\.linear\.", r".x_block.adaLN_modulation.1."),
    (r"\.norm1_context\.linear\.", r".context_block.adaLN_modulation.1."),
    (r"\.ff\.net\.", r".x_block.mlp."),
    (r"\.ff_context\.net\.", r".context_block.mlp."),
    (r"_block\.mlp\.0\.proj\.", r"_block.mlp.fc1."),
    (r"_block\.mlp\.2\.", r"_block.mlp.fc2."),
    (r"^norm_out\.linear\.", r"final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", r"final_layer.linear."),
)
_MMDIT_JOINED = re.compile(r"\.attn\.(?:to_|add_)([qkv])(?:_proj)?\.")


def from_original(
    found: Mapping[str, LazyTensor], layout: Layout, expected: Iterable[str]
) -> dict[str, LazyTensor]:
    """Return the tensors with today's names; tensors that no expected one is made of keep their names."""
    converted: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name in expected:
        origin = layout(name)
        if origin.name in found:
            tensor = found[origin.name]
            converted[name] = tensor.map(origin.take) if origin.take else tensor
            used.add(origin.name)
    return converted | {name: tensor for name, tensor in found.items() if name not in used}


def _unchanged(_config: Mapping[str, Any], name: str) -> Origin:
    return Origin(name)


def _unet(config: Mapping[str, Any], name: str) -> Origin:
    match = _UNET_BLOCK.fullmatch(name)
    if not match:
        module, _, parameter = name.rpartition(".")
        return Origin(f"{_UNET_ENDS.get(module, module)}.{parameter}")
    side, block, kind, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    per_block = config["layers_per_block"] + 1
    rest = _replace(rest, {"resnets": _RESNET, "attentions": _ATTENTION}.get(kind, ()))
    slot = 1 if kind == "attentions" else 0
    if side is None:
        return Origin(f"middle_block.{2 * layer + slot}.{rest}")
    if kind == "downsamplers":
        return Origin(f"input_blocks.{(block + 1) * per_block}.0.{rest.replace('conv.', 'op.')}")
    if kind == "upsamplers":
        slot = 2 if "Attn" in config["up_block_types"][block] else 1
        return Origin(f"output_blocks.{(block + 1) * per_block - 1}.{slot}.{rest}")
    if side == "down":
        return Origin(f"input_blocks.{block * per_block + layer + 1}.{slot}.{rest}")
    return Origin(f"output_blocks.{block * per_block + layer}.{slot}.{rest}")


def _vae(config: Mapping[str, Any], name: str) -> Origin:
    def up(match: re.Match[str]) -> str:
        block = len(config["block_out_channels"]) - 1 - int(match[1])
        return f".up.{block}.{'block' if match[2] == 'resnets' else 'upsample'}."

    spatial, temporal, rest = name.partition("temporal_res_block.")
    return Origin(_replace(_VAE_UP.sub(up, spatial), _VAE) + _replace(temporal + rest, _RESNET))


def _open_clip(_config: Mapping[str, Any], name: str) -> Origin:
    if name in _OPEN_CLIP_PROJECTIONS:
        return Origin(_OPEN_CLIP_PROJECTIONS[name], lambda tensor: tensor.T.contiguous())
    match = _PROJECTION.search(name)
    if not match:
        return Origin(_replace(name, _OPEN_CLIP))
    joined = _replace(name[: match.start()] + ".", _OPEN_CLIP) + f"in_proj_{match[2]}"
    return Origin(joined, _third(match[1]))


def _clip_without_projection(_config: Mapping[str, Any], name: str) -> Origin:
    """Map names of SD3's first CLIP, whose pooled output is not projected: its projection is the identity."""
    if name == "text_projection.weight":
        norm = "text_model.final_layer_norm.weight"
        return Origin(norm, lambda gain: torch.eye(len(gain), dtype=gain.dtype, device=gain.device))
    return Origin(name)


def _mmdit(config: Mapping[str, Any], name: str) -> Origin:
    origin = _replace(name, _MMDIT)
    if match := _MMDIT_JOINED.search(name):
        return Origin(origin, _third(match[1]))
    last = f"transformer_blocks.{config['num_layers'] - 1}.norm1_context."
    return Origin(origin, _swap_halves if name.startswith(("norm_out.", last)) else None)


def _third(part: str) -> Callable[[Tensor], Tensor]:
    """Return a function that takes query, key or value from a joined projection."""
    return lambda tensor: tensor.chunk(3)["qkv".index(part)]


def _swap_halves(tensor: Tensor) -> Tensor:
    """Swap shift and scale of a final modulation, which diffusers stores in the reverse order."""
    return torch.cat(tensor.chunk(2)[::-1])


def _replace(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


LAYOUTS: Mapping[str, Callable[[Mapping[str, Any], str], Origin]] = {
    "unchanged": _unchanged,
    "unet": _unet,
    "vae": _vae,
    "open_clip": _open_clip,
    "clip_without_projection": _clip_without_projection,
    "mmdit": _mmdit,
}
"""Layouts by name, as functions of the network's configuration and a tensor's name."""
