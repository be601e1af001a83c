"""Tokenizers as one ``tokenizer.json`` each, which the plain ``tokenizers`` library loads."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from controlnext.errors import CheckpointError
from controlnext.weights.lazy import first_line

_CLIP_MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
_CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def read_tokenizer(folder: Path, longest: int, vocabulary: int) -> str:
    """The content of a ``tokenizer.json`` for the tokenizer in ``folder`` (of a diffusers checkpoint).

    Padding and truncation to the model's length, at most ``longest``, are set inside. Raises
    :class:`CheckpointError` for a damaged tokenizer and for one of more than ``vocabulary`` tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # a damaged tokenizer can raise anything
        raise CheckpointError(
            f"{folder} holds no usable tokenizer: {first_line(error)}; get the folder again"
        ) from error
    if backend.get_vocab_size() > vocabulary:
        raise CheckpointError(
            f"{folder} has {backend.get_vocab_size()} tokens, its text encoder knows {vocabulary};"
            " they belong to different models"
        )
    length = min(tokenizer.model_max_length, longest)
    backend.enable_truncation(length)
    backend.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    text: str = backend.to_str()
    return text


def shipped_clip_tokenizer(folder: Path, longest: int, vocabulary: int) -> str:
    """As :func:`read_tokenizer` for a shipped ``folder`` that has the settings, but not CLIP's vocabulary."""
    merges = gzip.decompress(_CLIP_MERGES.read_bytes()).decode()
    with tempfile.TemporaryDirectory() as complete:
        shutil.copytree(folder, complete, dirs_exist_ok=True)
        Path(complete, "merges.txt").write_text(merges, encoding="utf-8")
        Path(complete, "vocab.json").write_text(json.dumps(_clip_vocabulary(merges)), encoding="utf-8")
        return read_tokenizer(Path(complete), longest, vocabulary)


def _clip_vocabulary(merges: str) -> dict[str, int]:
    """CLIP's tokens: the 256 bytes inside a word, the same at its end, every merge, start and end of text."""
    letters = sorted(ByteLevel.alphabet())
    merged = [line.replace(" ", "") for line in merges.splitlines()[1:]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, *_CLIP_SPECIAL]
    return {token: number for number, token in enumerate(tokens)}
