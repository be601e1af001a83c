"""Small CLIP tokenizers as transformers 4 (slow files) and 5 (fast files) save them, with added tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.exports import SHAPES

_FAST = json.loads((SHAPES / "base" / "tokenizer" / "tokenizer.json").read_text())
VOCABULARY: dict[str, int] = _FAST["model"]["vocab"]
KNOWN = {"vocab_size": len(VOCABULARY) + 16, "max_position_embeddings": 77}
"""Configuration of a text encoder: number of tokens, with added ones, and of positions."""
ADDED = ("<toy>", "<toy>_1", "<toy>_2", "<one>", "cat-toy", "cat-toy_1", "<Big>", "<Big>_1", "gap", "gap_2")
"""Tokens of three vectors, of one, of a word, in capitals, and two unrelated ones."""
_SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "special": False}


def write_settings(directory: Path, **settings: Any) -> None:
    """Write ``tokenizer_config.json`` with the settings that are not None."""
    common = {**_SPECIAL, "tokenizer_class": "CLIPTokenizer", "pad_token": "!", "model_max_length": 77}
    content = {key: value for key, value in {**common, **settings}.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(content))


def write_slow(directory: Path, added: Sequence[str] = ADDED, **settings: Any) -> Path:
    """Write ``vocab.json`` and ``merges.txt``, with ``added`` in ``added_tokens.json`` and in the
    settings."""
    directory.mkdir(parents=True)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in _FAST["model"]["merges"]]
    (directory / "vocab.json").write_text(json.dumps(VOCABULARY))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    ids = _numbered(added)
    (directory / "added_tokens.json").write_text(json.dumps(ids))
    decoder = {str(index): {"content": token, **_PLAIN} for token, index in ids.items()}
    write_settings(directory, added_tokens_decoder=decoder, **settings)
    return directory


def write_oldest(directory: Path, added: Sequence[str] = ADDED) -> Path:
    """Write files as before transformers 4.34: special and added tokens in separate files."""
    write_slow(directory, added)
    write_settings(directory, pad_token=None, bos_token=None)
    special = {**_SPECIAL, "pad_token": "!"}
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    return directory


def write_fast(directory: Path, added: Sequence[str] = ADDED, **settings: Any) -> Path:
    """Write ``tokenizer.json``, which includes ``added``."""
    directory.mkdir(parents=True)
    tokens = [{"id": index, "content": token, **_PLAIN} for token, index in _numbered(added).items()]
    content = {**_FAST, "added_tokens": [*_FAST["added_tokens"], *tokens]}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    write_settings(directory, **settings)
    return directory


def _numbered(added: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(added, len(VOCABULARY))}
