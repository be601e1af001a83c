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
    """Return the tokenizers of the family's text encoders, by name; None if the text encoder is not in
    ``networks``.

    If the base is a diffusers directory, they are the tokenizers that diffusers loads from it, so that a
    comparison shows errors of the bundle's tokenizers; if not, the bundle's.
    """
    loaded: dict[str, Any] = {}
    for name, network in checkpoint.family.networks.items():
        if not network.tokenizer:
            continue
        loaded[network.tokenizer] = None
        if name in networks and checkpoint.directory:
            longest = network.tokens or checkpoint.networks[name].config["max_position_embeddings"]
            loaded[network.tokenizer] = _loaded(checkpoint.directory, network.tokenizer, longest)
            loaded[network.tokenizer].add_tokens([*checkpoint.added_tokens.get(network.tokenizer, ())])
        elif name in networks and network.tokenizer in checkpoint.tokenizers:
            loaded[network.tokenizer] = _of_bundle(checkpoint.tokenizers[network.tokenizer])
    return loaded


def _loaded(directory: Path, name: str, longest: int) -> Any:
    """Load a tokenizer as a stock pipeline's ``from_pretrained`` does. A pipeline needs the length of
    prompts: it is ``longest`` if the directory has none, or a larger one."""
    index = directory / "model_index.json"
    entry = json.loads(index.read_text(encoding="utf-8-sig")).get(name) if index.is_file() else None
    cls = getattr(transformers, entry[1]) if entry and entry[1] else transformers.AutoTokenizer
    tokenizer = cls.from_pretrained(directory / name, local_files_only=True, trust_remote_code=False)
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
