"""Tokenizers of whole words, for fake bundles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

WORDS = ("<pad>", "<start>", "<end>", "<unknown>", "a", "red", "blue", "circle", "on", "green", "square")
WORDS += ("toy", "toy_1")


def write_tokenizer(path: Path, length: int, start: bool, added: Sequence[str]) -> None:
    """Write a tokenizer of whole words to ``path``, with or without a start token, that truncates and
    pads."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>" if start else "$A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer.add_tokens(list(added))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_token="<pad>", pad_id=0)
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))
