"""Tokenizers as one ``tokenizer.json`` each, which the plain ``tokenizers`` library loads."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from controlnext.errors import CheckpointError, MissingDependencyError
from controlnext.registry import Network
from controlnext.weights.lazy import first_line

_CLIP_MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
_CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_STAND_IN_SPECIAL = ("<pad>", "</s>", "<unk>")


def read_tokenizer(folder: Path, network: Network, config: Mapping[str, Any]) -> str:
    """The content of a ``tokenizer.json`` for the tokenizer in ``folder`` (of a diffusers checkpoint).

    Padding and truncation are set inside: to ``network.tokens``, or else to the length that the tokenizer
    names, at most the positions of the text encoder with this ``config``. Raises :class:`CheckpointError` for
    a damaged tokenizer and for one of more tokens than the text encoder knows, and
    :class:`MissingDependencyError` where a library is needed to read it.
    """
    _check_readable(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # a damaged tokenizer can raise anything
        raise CheckpointError(
            f"{folder} holds no usable tokenizer: {first_line(error)}; get the folder again"
        ) from error
    if backend.get_vocab_size() > config["vocab_size"]:
        raise CheckpointError(
            f"{folder} has {backend.get_vocab_size()} tokens, its text encoder knows {config['vocab_size']};"
            " they belong to different models"
        )
    length = network.tokens or min(tokenizer.model_max_length, config["max_position_embeddings"])
    return _of_length(backend, length, tokenizer.pad_token_id, tokenizer.pad_token)


def stand_in_tokenizer(network: Network) -> str:
    """As :func:`read_tokenizer`, in the place of a vocabulary that is not shipped: a token for each byte.

    It has nothing of the real tokenizer but the length of its prompts and its special tokens (padding 0, end
    1, unknown 2): enough for a text encoder of random numbers, and for nothing else.
    """
    tokens = [*_STAND_IN_SPECIAL, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.add_special_tokens(list(_STAND_IN_SPECIAL))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    end = _STAND_IN_SPECIAL[1]
    tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    return _of_length(tokenizer, network.tokens, 0, _STAND_IN_SPECIAL[0])


def _of_length(tokenizer: Tokenizer, length: int, pad_id: int, pad_token: str) -> str:
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad_token)
    text: str = tokenizer.to_str()
    return text


def _check_readable(folder: Path) -> None:
    """transformers asks for other libraries than the one that it lacks."""
    only = [path.name for path in folder.glob("*.model")] if not (folder / "tokenizer.json").is_file() else []
    if only and not find_spec("sentencepiece"):
        raise MissingDependencyError(
            f"{folder} has {only[0]} and no tokenizer.json; to read it, run: pip install sentencepiece"
        )


def shipped_clip_tokenizer(folder: Path, network: Network, config: Mapping[str, Any]) -> str:
    """As :func:`read_tokenizer` for a shipped ``folder`` that has the settings, but not CLIP's vocabulary."""
    merges = gzip.decompress(_CLIP_MERGES.read_bytes()).decode()
    with tempfile.TemporaryDirectory() as complete:
        shutil.copytree(folder, complete, dirs_exist_ok=True)
        Path(complete, "merges.txt").write_text(merges, encoding="utf-8")
        Path(complete, "vocab.json").write_text(json.dumps(_clip_vocabulary(merges)), encoding="utf-8")
        return read_tokenizer(Path(complete), network, config)


def _clip_vocabulary(merges: str) -> dict[str, int]:
    """CLIP's tokens: the 256 bytes inside a word, the same at its end, every merge, start and end of text."""
    letters = sorted(ByteLevel.alphabet())
    merged = [line.replace(" ", "") for line in merges.splitlines()[1:]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, *_CLIP_SPECIAL]
    return {token: number for number, token in enumerate(tokens)}
