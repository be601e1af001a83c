"""Description of the content of weight files, for messages about files that do not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from controlnext.weights.lazy import LazyTensor
from controlnext.weights.variants import candidates, read_spec, title

# Title, and patterns that must each match some tensor's name (with "!", none); the first that fits counts.
_LAYOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a LoRA", (r"\blora_|\.lora\.|lora_(up|down)\.|\.lora_[AB]\.",)),
    ("an IP-Adapter", (r"^(image_proj|ip_adapter)\.",)),
    ("a ControlNet, not a ControlNeXt", (r"(^|\.)(controlnet_cond_embedding|input_hint_block)\.",)),
    ("a T2I-Adapter", (r"^(adapter\.)?body\.\d",)),
    ("a complete SDXL checkpoint", (r"^model\.diffusion_model\.", r"^conditioner\.embedders\.1\.")),
    (
        "a complete SDXL refiner checkpoint",
        (r"^model\.diffusion_model\.", r"^conditioner\.embedders\.0\.model\."),
    ),
    ("a complete SVD checkpoint", (r"^model\.diffusion_model\..*time_stack\.",)),
    ("a complete SD3 checkpoint", (r"^model\.diffusion_model\.joint_blocks\.", r"^first_stage_model\.")),
    ("a complete SD1.x checkpoint", (r"^model\.diffusion_model\.", r"^cond_stage_model\.transformer\.")),
    ("a complete SD2.x checkpoint", (r"^model\.diffusion_model\.", r"^cond_stage_model\.model\.")),
    (
        "an SD3 or Flux transformer",
        (r"(joint_|double_|\btransformer_)blocks\.\d+\..*(add_|txt_|context_block)",),
    ),
    ("an SVD UNet", (r"^down_blocks\..*temporal_transformer_blocks\.",)),
    ("an SDXL UNet", (r"^(unet\.)?add_embedding\.linear_1\.", r"^(unet\.)?(down|up)_blocks\.")),
    ("a UNet", (r"^(unet\.)?down_blocks\.\d+\.(resnets|attentions|downsamplers)\.", r"!^encoder\.")),
    ("an SDXL UNet under its original names", (r"(^|\.)input_blocks\.", r"(^|\.)label_emb\.")),
    ("a UNet under its original names", (r"(^|\.)(input|output)_blocks\.",)),
    ("tensors of a UNet", (r"^(unet\.)?(up_blocks|mid_block)\.", r"!^(en|de)coder\.")),
    ("a tiny VAE", (r"^((taesd_)?(encoder|decoder)\.)?(layers\.)?\d+\.(conv\.\d+\.)?weight$",)),
    ("a VAE", (r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|conv_out|mid)",)),
    ("a text or image encoder", (r"encoder\.(layers|block)\.\d|resblocks\.\d",)),
)

# arguments of load_checkpoint for files that are not a base, by the end of their title
_ARGUMENTS = (
    ("UNet", "unet_weights"),
    ("UNet under its original names", "unet_weights"),
    ("transformer", "unet_weights"),
    ("VAE", "vae"),
    ("LoRA", "lora"),
)


def looks_like(found: Mapping[str, LazyTensor]) -> str:
    """Describe these tensors: ``"a VAE"``, or a few of their names if they are unknown."""
    if not found:
        return "an empty file"
    control = read_spec(found)
    if control:
        variants = candidates(control)
        return title(variants) if variants else "a ControlNeXt control module of an unknown variant"
    for name, patterns in _LAYOUTS:
        if all(_fits(pattern, found) for pattern in patterns):
            return name
    return f"unknown weights ({len(found)} tensors: {', '.join(list(found)[:3])} ...)"


def argument_for(found: Mapping[str, LazyTensor]) -> str:
    """Return the argument of load_checkpoint that takes such tensors, a part of a model; empty if none
    does."""
    if read_spec(found):
        return "control"
    title = looks_like(found)
    return next((argument for end, argument in _ARGUMENTS if title.endswith(end)), "")


def _fits(pattern: str, names: Collection[str]) -> bool:
    wanted = not pattern.startswith("!")
    return wanted == any(re.search(pattern.removeprefix("!"), name) for name in names)
