"""Original (LDM, OpenCLIP) tensor names of the networks that diffusers and transformers named anew.

Every name that a network expects is turned into its original name, so that whatever is left over in the
file is known to be unexpected, and a part of a network converts like the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from controlnext.weights.lazy import LazyTensor


@dataclass(frozen=True)
class Origin:
    """Where a tensor lies in an original checkpoint: its name there, and what to take of it."""

    name: str
    take: Callable[[Tensor], Tensor] | None = None


Layout = Callable[[str], Origin]
"""Today's name of a tensor -> its origin."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
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
)
_VAE_UP = re.compile(r"\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.")

_OPEN_CLIP = (
    (r"^text_model\.", r""),
    (r"^encoder\.layers\.", r"transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", r".mlp.c_fc."),
    (r"\.mlp\.fc2\.", r".mlp.c_proj."),
    (r"\.self_attn\.", r".attn."),
    (r"^embeddings\.token_embedding\.", r"token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", r"positional_embedding"),
    (r"^final_layer_norm\.", r"ln_final."),
)
_PROJECTION = re.compile(r"\.([qkv])_proj\.(weight|bias)$")


def from_original(
    found: Mapping[str, LazyTensor], layout: Layout, expected: Iterable[str]
) -> dict[str, LazyTensor]:
    """The tensors under today's names; those that no expected tensor stems from keep their own."""
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
    if kind == "resnets":
        module, _, parameter = rest.rpartition(".")
        rest = f"{_RESNET[module]}.{parameter}"
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
        block = len(config["up_block_types"]) - 1 - int(match[1])
        return f".up.{block}.{'block' if match[2] == 'resnets' else 'upsample'}."

    return Origin(_replace(_VAE_UP.sub(up, name), _VAE))


def _open_clip(_config: Mapping[str, Any], name: str) -> Origin:
    if name == "text_projection.weight":
        return Origin("text_projection", lambda tensor: tensor.T.contiguous())
    match = _PROJECTION.search(name)
    if not match:
        return Origin(_replace(name, _OPEN_CLIP))
    third = "qkv".index(match[1])
    joined = _replace(name[: match.start()] + ".", _OPEN_CLIP) + f"in_proj_{match[2]}"
    return Origin(joined, lambda tensor: tensor.chunk(3)[third])


def _replace(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


LAYOUTS: Mapping[str, Callable[[Mapping[str, Any], str], Origin]] = {
    "unchanged": _unchanged,
    "unet": _unet,
    "vae": _vae,
    "open_clip": _open_clip,
}
"""Layouts by name, each still to be given the network's configuration."""
