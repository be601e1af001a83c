"""Full-size networks and checkpoints without memory for weights, and diffusers' conversion of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from diffusers.loaders import single_file_utils

from controlnext.families import FAMILIES, Family, get_family
from controlnext.weights.networks import empty_module
from controlnext.weights.original import Layout
from controlnext.weights.shipped import original_layout, shipped_config
from support.weights_models import PREFIXES, originals

VIDEO = get_family("svd")
# diffusers has no converter for SVD
OF_DIFFUSERS = pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if family is not VIDEO], ids=lambda family: family.name
)


@dataclass
class FullSize:
    """The full-size networks and the checkpoint that holds them, without memory for the weights."""

    modules: dict[str, torch.nn.Module]
    layouts: dict[str, Layout]
    checkpoint: dict[str, torch.Tensor]


@cache
def full_size(family_name: str) -> FullSize:
    """Return the family's full-size networks and checkpoint, on the meta device."""
    family, full = get_family(family_name), FullSize({}, {}, {})
    for name, network in family.networks.items():
        config = shipped_config(family, network)
        full.modules[name] = empty_module(network, config)
        full.layouts[name] = original_layout(family, name, config)
        tensors = full.modules[name].state_dict()
        full.checkpoint |= originals(family, name, tensors, full.layouts[name])
    return full


def converted_by_diffusers(
    family: Family, name: str, module: torch.nn.Module, checkpoint: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Convert one network of a single-file checkpoint by diffusers' functions."""
    prefix, tensors = PREFIXES[family.name][name], dict(checkpoint)
    if name == "transformer":
        return single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    if name == "unet":
        return single_file_utils.convert_ldm_unet_checkpoint(tensors, dict(module.config))
    if name == "vae":
        return single_file_utils.convert_ldm_vae_checkpoint(tensors, dict(module.config))
    if name == "text_encoder_3":
        return single_file_utils.convert_sd3_t5_checkpoint_to_diffusers(tensors)
    if "embedders.1" in prefix:
        return single_file_utils.convert_open_clip_checkpoint(module, tensors, prefix=prefix)
    return single_file_utils.convert_ldm_clip_checkpoint(tensors, prefix)
