"""A tiny SDXL base with text encoders, and the originals of its tensors, for the tests of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from recipe import fill
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from controlnext.registry import get_family
from controlnext.weights.shipped import shipped_folder, shipped_tokenizer

SDXL = get_family("sdxl")
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def add_text_encoders(base: Path) -> Path:
    """Put two tiny text encoders with CLIP's vocabulary, and their tokenizers, into a diffusers folder."""
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    for seed, (name, cls) in enumerate(classes.items()):
        config = CLIPTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=24,
        )
        fill(cls(config), seed).save_pretrained(base / name)
        network = SDXL.networks[name]
        shutil.copytree(shipped_folder(SDXL) / network.tokenizer, base / network.tokenizer)
        content = shipped_tokenizer(SDXL, network, config.to_dict())
        (base / network.tokenizer / "tokenizer.json").write_text(content, encoding="utf-8")
    return base


def shrink_shipped(base: Path, folder: Path) -> Path:
    """A copy of the shipped configurations whose networks have the sizes of those in ``base``."""
    shutil.copytree(shipped_folder(SDXL), folder)
    for name in NETWORKS:
        shutil.copy(base / name / "config.json", folder / name / "config.json")
    return folder


def example_inputs(name: str) -> dict[str, Any]:
    """Arguments for a forward pass of one of the tiny networks."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if name == "unet":
        added = {"text_embeds": draw(2, 24), "time_ids": torch.ones(2, 6)}
        latents = {"sample": draw(2, 4, 8, 8), "timestep": 3, "encoder_hidden_states": draw(2, 77, 48)}
        return {**latents, "added_cond_kwargs": added}
    if name == "vae":
        return {"sample": draw(1, 3, 32, 32)}
    return {"input_ids": torch.tensor([[49406, 320, 1125, 539, 320, 2368, *[49407] * 71]])}


def rewrite_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
