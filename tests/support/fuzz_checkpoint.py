"""A tiny SD1.5 checkpoint with everything that an export takes, in all kinds of files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from controlnext.families import get_family
from controlnext.image_prompts import AdapterSpec
from controlnext.models.image_prompt import cross_attentions
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.ip_adapter import empty_adapter
from controlnext.weights.networks import shapes_of
from support.recipe import fill, numbers, write_checkpoint
from support.tiny_vaes import save_tiny, tiny_vae
from support.tokenizer_files import KNOWN, write_slow

_WIDTH = 48
"""Width of the tiny denoiser's text."""
_STEM = "diffusion_pytorch_model"


def write_whole_checkpoint(directory: Path) -> None:
    """Write ``base`` (its UNet in two shards, VAE and text encoder as pickles of both forms),
    ``control.safetensors``, ``lora.safetensors``, ``inversion.pt``, ``vae.safetensors``, the tiny VAE
    ``previews``, ``ip_adapter.bin`` with ``image_encoder``."""
    write_checkpoint("sd15", directory)
    base = directory / "base"
    _add_text_encoder(base)
    checkpoint = load_checkpoint(get_family("sd15"), base=base, control=directory / "control.safetensors")
    _write_adapters(checkpoint, directory)
    vae = base / "vae" / f"{_STEM}.safetensors"
    shutil.copy(vae, directory / "vae.safetensors")
    _as_pickle(vae, f"{_STEM}.bin", zipped=False)
    _as_pickle(base / "text_encoder" / "model.safetensors", "pytorch_model.bin", zipped=True)
    _split(base / "unet")


def _add_text_encoder(base: Path) -> None:
    sizes = {"hidden_size": _WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(**sizes, **KNOWN)
    fill(transformers.CLIPTextModel(config), 3).save_pretrained(base / "text_encoder")
    write_slow(base / "tokenizer")
    index = base / "model_index.json"
    content = json.loads(index.read_text())
    content |= {"text_encoder": ["transformers", "CLIPTextModel"]}
    content |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    index.write_text(json.dumps(content, indent=2))


def _as_pickle(file: Path, name: str, zipped: bool) -> None:
    torch.save(load_file(file), file.with_name(name), _use_new_zipfile_serialization=zipped)
    file.unlink()


def _split(folder: Path) -> None:
    """Write the tensors of a network as two shards and their index, as diffusers does."""
    whole = folder / f"{_STEM}.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    places = {}
    for number, half in enumerate(halves, start=1):
        shard = f"{_STEM}-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / shard, {"format": "pt"})
        places |= dict.fromkeys(half, shard)
    content: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{_STEM}.safetensors.index.json").write_text(json.dumps(content))


def _write_adapters(checkpoint: Checkpoint, directory: Path) -> None:
    unet = checkpoint.networks["unet"].meta_module()
    layers = tuple(one.to_q.out_features for _, one in cross_attentions(unet))
    spec = AdapterSpec("base", (24,), 4, _WIDTH, layers)
    nested: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in numbers(shapes_of(empty_adapter(spec)), 4).items():
        group, _, inside = name.partition(".")
        nested.setdefault(group, {})[inside] = tensor
    torch.save(nested, directory / "ip_adapter.bin")
    config = transformers.CLIPVisionConfig(
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 28, "patch_size": 14, "projection_dim": 24},
    )
    fill(transformers.CLIPVisionModelWithProjection(config), 5).save_pretrained(directory / "image_encoder")
    save_tiny(tiny_vae(), directory / "previews")
    torch.save({"<toy-2>": torch.ones(2, _WIDTH)}, directory / "inversion.pt")
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    matrices = {f"{layer}.lora_A.weight": torch.ones(4, 32), f"{layer}.lora_B.weight": torch.ones(32, 4)}
    matrices[f"{layer}.alpha"] = torch.tensor(2.0)
    settings = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})}
    save_file(matrices, directory / "lora.safetensors", settings)
