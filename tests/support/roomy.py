"""Small models with text encoders, exported with room for LoRAs, and LoRAs for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import transformers
from safetensors.torch import save_file
from transformers import CLIPTextConfig

from controlnext.bundle.manifest import Quantization
from controlnext.export import export_bundle
from controlnext.families import get_family
from controlnext.weights import load_checkpoint
from controlnext.weights.shipped import original_layout
from support.lora_files import as_kohya, as_peft, low_rank
from support.recipe import fill
from support.weights_models import add_text_encoders

RANK = 10
"""Room of the bundles."""
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "sample_size": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    },
    "sdxl": {
        "sample_size": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 48,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 72,
    },
}
"""Configurations of UNets of two blocks."""


@dataclass(frozen=True)
class Roomy:
    """A model: its family, and the directory of ``base/``, ``control.safetensors`` and of the LoRAs
    ``a.safetensors`` and ``b.safetensors``, of rank 4 each."""

    family: str
    directory: Path

    def checkpoint(self) -> Any:
        """Load it."""
        return load_checkpoint(
            get_family(self.family),
            base=self.directory / "base",
            control=self.directory / "control.safetensors",
        )

    def export(self, bundle: Path, precision: str = "fp32", quantized: Quantization | None = None) -> None:
        """Export it; ``quantized``: the layers of an int8 one."""
        export_bundle(self.checkpoint(), precision, bundle, lora_rank=RANK, calibrated=quantized)


def write_roomy(family_name: str, tiny_checkpoint: Callable[[str], Path], directory: Path) -> None:
    """Write the model and its LoRAs to ``directory``."""
    family = get_family(family_name)
    shutil.copytree(tiny_checkpoint(family_name), directory)
    add_text_encoders(directory / "base", family)
    if family_name in UNETS:
        unet = fill(diffusers.UNet2DConditionModel(**UNETS[family_name]), 7)
        unet.save_pretrained(directory / "base" / "unet")
    if family_name == "sdxl":
        # what both encoders give has to be as wide as what this UNet takes
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
        config = CLIPTextConfig(**sizes, num_attention_heads=2, projection_dim=24)
        widened = fill(transformers.CLIPTextModelWithProjection(config), 1)
        widened.save_pretrained(directory / "base" / "text_encoder_2")
    networks = Roomy(family_name, directory).checkpoint().networks
    names = (family.denoiser, *family.prompt_encoders)
    modules = {name: networks[name].module() for name in names}
    first = as_peft(low_rank(modules, 1))
    if family_name in UNETS:
        layout = original_layout(family, "unet", dict(modules["unet"].config))
        first = as_kohya(low_rank(modules, 1), 2.0, layout if family_name == "sdxl" else None)
    save_file(first, directory / "a.safetensors")
    save_file(as_peft(low_rank(modules, 2)), directory / "b.safetensors")
