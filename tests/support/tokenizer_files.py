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
"""Of the configuration of a text encoder: tokens, added ones too, and positions."""
ADDED = ("<toy>", "<toy>_1", "<toy>_2", "<one>", "cat-toy", "cat-toy_1", "<Big>", "<Big>_1", "gap", "gap_2")
"""Of three vectors, of one, of a word, in capitals, and two that do not belong together."""
_SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "special": False}


def write_settings(folder: Path, **settings: Any) -> None:
    """``tokenizer_config.json``; what is None is left out."""
    common = {**_SPECIAL, "tokenizer_class": "CLIPTokenizer", "pad_token": "!", "model_max_length": 77}
    content = {key: value for key, value in {**common, **settings}.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def write_slow(folder: Path, added: Sequence[str] = ADDED, **settings: Any) -> Path:
    """``vocab.json`` and ``merges.txt``; ``added`` in ``added_tokens.json`` and in the settings."""
    folder.mkdir(parents=True)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in _FAST["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    ids = _numbered(added)
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    decoder = {str(index): {"content": token, **_PLAIN} for token, index in ids.items()}
    write_settings(folder, added_tokens_decoder=decoder, **settings)
    return folder


def write_oldest(folder: Path, added: Sequence[str] = ADDED) -> Path:
    """As before transformers 4.34: the special tokens in a file of their own, the added ones in theirs."""
    write_slow(folder, added)
    write_settings(folder, pad_token=None, bos_token=None)
    special = {**_SPECIAL, "pad_token": "!"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


def write_fast(folder: Path, added: Sequence[str] = ADDED, **settings: Any) -> Path:
    """``tokenizer.json``, with ``added`` inside."""
    folder.mkdir(parents=True)
    tokens = [{"id": index, "content": token, **_PLAIN} for token, index in _numbered(added).items()]
    content = {**_FAST, "added_tokens": [*_FAST["added_tokens"], *tokens]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write_settings(folder, **settings)
    return folder


def _numbered(added: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(added, len(VOCABULARY))}
