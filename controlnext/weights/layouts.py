"""What a file of weights looks like, for messages about files that do not fit."""

from __future__ import annotations

import re
from collections.abc import Collection

_CONTROL = r"^down_sample\.\d+\.conv\.weight$"

# Title, and patterns that must each match some tensor's name (with "!", none); the first that fits counts.
_LAYOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a LoRA", (r"\blora_|\.lora\.|lora_(up|down)\.|\.lora_[AB]\.",)),
    ("an IP-Adapter", (r"^(image_proj|ip_adapter)\.",)),
    ("the control module of the first SD1.5 release (sd15-mid)", (_CONTROL, r"^scale$", r"!^embedding\.")),
    ("the control module of the first SVD release (svd-v1)", (_CONTROL, r"^scale$", r"^embedding\.")),
    (
        "the control module of sd15, sdxl or svd v2, which share names and shapes",
        (_CONTROL, r"^embedding\.", r"^down_res\.1\.", r"!^down_res\.2\."),
    ),
    ("a ControlNeXt control module of an unknown variant", (_CONTROL,)),
    ("a ControlNet, not a ControlNeXt", (r"(^|\.)(controlnet_cond_embedding|input_hint_block)\.",)),
    ("a T2I-Adapter", (r"^(adapter\.)?body\.\d",)),
    ("a complete SDXL checkpoint", (r"^model\.diffusion_model\.", r"^conditioner\.embedders\.1\.")),
    (
        "a complete SDXL refiner checkpoint",
        (r"^model\.diffusion_model\.", r"^conditioner\.embedders\.0\.model\."),
    ),
    ("a complete SVD checkpoint", (r"^model\.diffusion_model\..*time_stack\.",)),
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
    ("a VAE", (r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|conv_out|mid)",)),
    ("a text or image encoder", (r"encoder\.(layers|block)\.\d|resblocks\.\d",)),
)


def looks_like(found: Collection[str]) -> str:
    """What tensors of these names look like: ``"a VAE"``, or a few of the names where that is unknown."""
    if not found:
        return "an empty file"
    for title, patterns in _LAYOUTS:
        if all(_fits(pattern, found) for pattern in patterns):
            return title
    return f"nothing known ({len(found)} tensors: {', '.join(list(found)[:3])} ...)"


def _fits(pattern: str, names: Collection[str]) -> bool:
    wanted = not pattern.startswith("!")
    return wanted == any(re.search(pattern.removeprefix("!"), name) for name in names)
