"""LoRAs of few-step models in the form in which they are published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from controlnext.families import Family
from controlnext.weights.lora import apply_loras
from support.lora_files import SD15, SDXL, as_kohya, assert_fused, base_of, low_rank, networks, stock

# those that diffusers' script for LCM-LoRA trains
LAYERS = re.compile(
    r"attn|proj_(in|out)$|\.ff|resnets.*(conv(\d|_shortcut)|time_emb_proj)$|(down|up)samplers\.0\.conv$"
)


@pytest.mark.export
@pytest.mark.parametrize("family", [SD15, SDXL])
def test_loras_of_the_whole_unet_are_fused_as_diffusers_does(family: Family, tmp_path: Path) -> None:
    """Under sd-scripts' names with diffusers' layers, convolutions too, in float16, without text encoders."""
    modules = {"unet": networks(family)["unet"]}
    pairs = {name: both for name, both in low_rank(modules).items() if LAYERS.search(name)}
    assert {
        "unet.down_blocks.0.downsamplers.0.conv",
        "unet.mid_block.resnets.0.time_emb_proj",
    } <= pairs.keys()
    file = tmp_path / "lora.safetensors"
    save_file({name: tensor.half() for name, tensor in as_kohya(pairs, alpha=2.0).items()}, file)
    base, before = base_of(family, modules), base_of(family, modules)
    apply_loras(family, base, [str(file)])
    assert_fused(base, stock(family, modules, {file: 1.0}), before, len(pairs))
