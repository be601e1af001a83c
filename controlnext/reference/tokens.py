"""The stock tokenizers of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from controlnext.weights import Checkpoint


def stock_tokenizers(checkpoint: Checkpoint, networks: Collection[str]) -> dict[str, Any]:
    """Return the tokenizers that feed those of the ``networks`` that are text encoders, by name; None for those that
    feed others.

    Of a base in a diffusers folder they are what diffusers loads from there by itself, so that a comparison
    shows what the bundle's tokenizers lack; else the bundle's.
    """
    loaded: dict[str, Any] = {}
    for name, network in checkpoint.family.networks.items():
        if not network.tokenizer:
            continue
        loaded[network.tokenizer] = None
        if name in networks and checkpoint.folder:
            longest = network.tokens or checkpoint.networks[name].config["max_position_embeddings"]
            loaded[network.tokenizer] = _loaded(checkpoint.folder, network.tokenizer, longest)
        elif name in networks and network.tokenizer in checkpoint.tokenizers:
            loaded[network.tokenizer] = _of_bundle(checkpoint.tokenizers[network.tokenizer])
    return loaded


def _loaded(folder: Path, name: str, longest: int) -> Any:
    """As a stock pipeline's ``from_pretrained`` loads it. A pipeline cannot do without the length of prompts:
    where the folder names none, or more than the family's prompts have, it is ``longest``."""
    index = folder / "model_index.json"
    entry = json.loads(index.read_text(encoding="utf-8")).get(name) if index.is_file() else None
    cls = getattr(transformers, entry[1]) if entry and entry[1] else transformers.AutoTokenizer
    tokenizer = cls.from_pretrained(folder / name, local_files_only=True)
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    return tokenizer


def _of_bundle(content: str) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(content)
    padding, truncation = tokenizer.padding, tokenizer.truncation
    assert padding is not None
    assert truncation is not None
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=padding["pad_token"],
        padding_side=padding["direction"],
        truncation_side=truncation["direction"],
        model_max_length=truncation["max_length"],
    )
