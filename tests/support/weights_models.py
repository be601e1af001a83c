"""Tiny bases with text encoders, and their tensors in original layouts, for the tests of weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, T5Config

from controlnext.families import Family, Network, get_family
from controlnext.weights.original import Layout
from controlnext.weights.shipped import original_layout, shipped_directory, shipped_tokenizer
from support.recipe import fill

SDXL = get_family("sdxl")
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")

PREFIXES = {
    "sd15": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.transformer.",
    },
    "sdxl": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "svd": {
        "unet": "model.diffusion_model.",
        "vae": "conditioner.embedders.3.encoder.",
        "vae decoder": "first_stage_model.",
        "image_encoder": "conditioner.embedders.0.open_clip.model.visual.",
    },
    "sd3": {
        "transformer": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
    },
}
"""Prefix of the names of each network in published single-file checkpoints."""


def add_text_encoders(base: Path, family: Family = SDXL) -> Path:
    """Add tiny text encoders and tokenizers to a diffusers directory; those of CLIP have its vocabulary."""
    encoders = [(name, network) for name, network in family.networks.items() if network.tokenizer]
    for seed, (name, network) in enumerate(encoders):
        module = fill(_text_encoder(network), seed)
        if name == "text_encoder" and hasattr(module, "text_projection"):
            # SD3's first CLIP is not projected
            torch.nn.init.eye_(module.text_projection.weight)
        module.save_pretrained(base / name)
        content = shipped_tokenizer(family, network, module.config.to_dict())
        if content is None:
            t5_tokenizer().save_pretrained(base / network.tokenizer)
            continue
        shutil.copytree(shipped_directory(family) / network.tokenizer, base / network.tokenizer)
        (base / network.tokenizer / "tokenizer.json").write_text(content, encoding="utf-8")
    return base


def _text_encoder(network: Network) -> Any:
    if network.cls == "T5EncoderModel":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 160}
        return transformers.T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    projection = 16 if network.folder == "text_encoder" else 24
    return getattr(transformers, network.cls)(CLIPTextConfig(**sizes, projection_dim=projection))


def t5_tokenizer() -> transformers.T5TokenizerFast:
    """Return a T5 tokenizer of few words, with T5's hundred sentinels."""
    words = ["<pad>", "</s>", "<unk>", "▁a", "▁cat", "▁photo", "▁of", "▁", *"scathopfilr,!"]
    sentinels = [f"<extra_id_{number}>" for number in range(99, -1, -1)]
    vocabulary = [(word, -float(number)) for number, word in enumerate(dict.fromkeys(words + sentinels))]
    return transformers.T5TokenizerFast(vocab=vocabulary, model_max_length=512)


def shrink_shipped(base: Path, directory: Path, family: Family = SDXL) -> Path:
    """Copy the shipped configurations, with the networks' sizes of ``base``."""
    shutil.copytree(shipped_directory(family), directory)
    for network in family.networks.values():
        shutil.copy(base / network.folder / "config.json", directory / network.folder / "config.json")
    return directory


def write_single_file(family: Family, tiny: Path, directory: Path) -> Path:
    """Write a ``base`` like ``tiny`` with text encoders, and the same as ``single.safetensors``, to
    ``directory``; return shipped configurations of these sizes."""
    base = add_text_encoders(Path(shutil.copytree(tiny, directory / "base")), family)
    small = shrink_shipped(base, directory / "shipped", family)
    # what published files hold besides, and nobody reads
    single = {"alphas_cumprod": torch.ones(9)}
    for key, network in family.networks.items():
        config = json.loads((small / network.folder / "config.json").read_text())
        stem = "diffusion_pytorch_model" if network.library == "diffusers" else "model"
        tensors = load_file(base / network.folder / f"{stem}.safetensors")
        single |= originals(family, key, tensors, original_layout(family, key, config))
        if network.tokenizer:
            single[PREFIXES[family.name][key] + "logit_scale"] = torch.tensor(4.6)
    save_file({k: v.contiguous() for k, v in single.items()}, directory / "single.safetensors")
    return small


def originals(family: Family, name: str, tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return a network's tensors in the original layout: joined projections, 1 x 1 convolutions."""
    stems: dict[str, list[str]] = {}
    for today in tensors:
        stems.setdefault(layout(today).name, []).append(today)
    prefixes = PREFIXES[family.name]
    result = {}
    for origin, names in stems.items():
        key = f"{name} decoder" if origin.startswith("decoder.") else name
        result[prefixes.get(key, prefixes[name]) + origin] = _original(origin, names, tensors, layout)
    return result


def _original(origin: str, names: list[str], tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    if len(names) == 3:
        parts = {re.search(r"([qkv])(_proj)?\.(weight|bias)$", name)[1]: tensors[name] for name in names}
        return torch.cat([parts[part] for part in "qkv"])
    name = next((name for name in names if layout(name).take is None), names[0])
    tensor = tensors[name]
    if "adaLN_modulation" in origin and layout(name).take:
        return torch.cat(tensor.chunk(2)[::-1])
    if layout(name).take:
        return tensor.T.contiguous()
    return tensor[:, :, None, None] if ".attn_1." in origin and tensor.ndim == 2 else tensor


def example_inputs(family: Family, name: str) -> dict[str, Any]:
    """Return arguments for a forward pass of one of the tiny networks."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if name == "transformer":
        prompt = {"encoder_hidden_states": draw(2, 5, 32), "pooled_projections": draw(2, 40)}
        return {"hidden_states": draw(2, 16, 8, 8), "timestep": torch.tensor([3.0, 3.0]), **prompt}
    if name == "unet" and family.task == "video":
        added = {"encoder_hidden_states": draw(2, 1, 48), "added_time_ids": torch.ones(2, 3)}
        return {"sample": draw(2, 3, 8, 8, 8), "timestep": 3, **added}
    if name == "unet":
        added = {"text_embeds": draw(2, 24), "time_ids": torch.ones(2, 6)}
        latents = {"sample": draw(2, 4, 8, 8), "timestep": 3, "encoder_hidden_states": draw(2, 77, 48)}
        return {**latents, **({"added_cond_kwargs": added} if family.conditioning else {})}
    if name == "vae":
        return {"sample": draw(1, 3, 32, 32)}
    if name == "image_encoder":
        return {"pixel_values": draw(1, 3, 224, 224)}
    if name == "text_encoder_3":
        return {"input_ids": torch.tensor([[3, 4, 5, 1, *[0] * 20]])}
    return {"input_ids": torch.tensor([[49406, 320, 1125, 539, 320, 2368, *[49407] * 71]])}


def rewrite_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
