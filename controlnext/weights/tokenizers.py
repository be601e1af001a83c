"""Conversion of tokenizers to one ``tokenizer.json`` each, which the plain ``tokenizers`` library loads."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from controlnext.bundle.scratch import temporary_directory
from controlnext.errors import CheckpointError, first_line, is_failure
from controlnext.families import Network
from controlnext.optional import is_installed, not_installed
from controlnext.weights.json_files import INDEX, check_plain, read_json_if_there
from controlnext.weights.tokenizer_config import asked_ids, check_tokenizer_config, class_of

log = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"
_FILES = (_CONFIG, "added_tokens.json", "tokenizer.json")

_OF_BYTES = ("vocab.json", "merges.txt")
"""Files of a tokenizer's vocabulary, as slow tokenizers save it."""

_CLIP_MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
_CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_STAND_IN_SPECIAL = ("<pad>", "</s>", "<unk>")


def read_tokenizer(directory: Path, network: Network, config: Mapping[str, Any]) -> str:
    """Return the content of a ``tokenizer.json`` for the tokenizer in ``directory`` (of a diffusers
    checkpoint).

    It includes the tokens that were added to the vocabulary. Padding and truncation are set: to
    ``network.tokens``, or else to the tokenizer's own length, at most the positions of the text encoder with
    this ``config``. Its ids are compared with transformers' for :func:`_texts`.

    Raises :class:`CheckpointError` for a damaged tokenizer, for settings that the runtime does not support,
    and for more tokens than the text encoder has, and :class:`~controlnext.errors.MissingDependencyError` if
    a library is needed to read it.
    """
    _check_encoder(directory, config)
    _check_readable(directory)
    for path in directory.iterdir():
        if not path.is_dir():
            check_plain(path)
    files = {name: read_json_if_there(directory / name) for name in _FILES}
    unknown = check_tokenizer_config(directory, files[_CONFIG])
    cls = class_of(directory, _named_class(directory, files[_CONFIG]))
    try:
        tokenizer = getattr(transformers, cls).from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        _check_vocabulary(directory, tokenizer, list(asked_ids(files)), config["vocab_size"])
        length = network.tokens or _length(directory, tokenizer, config["max_position_embeddings"])
        content = _content(directory, tokenizer, length)
        _check_ids(directory, tokenizer, content, length)
    except CheckpointError:
        raise
    except BaseException as error:  # a damaged tokenizer can raise anything
        if not is_failure(error):
            raise
        raise CheckpointError(
            f"{directory} holds no usable tokenizer: {first_line(error)}; get the directory again"
        ) from error
    if unknown:
        names = ", ".join(unknown)
        log.warning(
            "%s: the unknown keys %s in %s are ignored; token ids equal transformers'",
            directory,
            names,
            _CONFIG,
        )
    return content


def _check_encoder(directory: Path, config: Mapping[str, Any]) -> None:
    if config.get("use_attention_mask"):
        raise CheckpointError(
            f"the text encoder of {directory} has use_attention_mask=true, which is not supported: its graph"
            " takes token ids alone"
        )


def check_lengths(tokenizers: Mapping[str, str], networks: Iterable[Network]) -> None:
    """Raise :class:`CheckpointError` if text encoders whose embeddings are joined would get prompts of
    different lengths."""
    joined = [n.tokenizer for n in networks if n.tokenizer in tokenizers and not n.tokens]
    lengths = {name: json.loads(tokenizers[name])["truncation"]["max_length"] for name in joined}
    if len(set(lengths.values())) > 1:
        raise CheckpointError(
            f"the tokenizers make prompts of different lengths: {lengths}; set model_max_length in each"
            f" {_CONFIG} to one number"
        )


def _named_class(directory: Path, config: Mapping[str, Any]) -> str:
    """Return the class that diffusers loads a tokenizer with; the index takes precedence over the tokenizer's
    own configuration."""
    entry = read_json_if_there(directory.parent / INDEX).get(directory.name)
    if isinstance(entry, list) and len(entry) == 2 and all(entry):
        library, cls = entry
        return str(cls) if library == "transformers" else f"{library}.{cls}"
    return str(config.get("tokenizer_class") or "")


def _check_vocabulary(
    directory: Path, tokenizer: Any, asked: Sequence[tuple[str, str, int]], known: int
) -> None:
    """Check that every added token has the id in the files, and that the text encoder has all ids."""
    backend = tokenizer.backend_tokenizer
    for file, token, index in asked:
        if backend.token_to_id(token) != index:
            raise CheckpointError(
                f"{directory}: {file} gives the token {token} the id {index}, but loaded by transformers it"
                f" has {backend.token_to_id(token)}; save the base again with diffusers"
            )
    count = max(backend.get_vocab().values()) + 1
    if count > known:
        raise CheckpointError(
            f"{directory} has {count} tokens, its text encoder has {known}; they belong to different models,"
            " or tokens were added without the text encoder's embeddings: get both from the same model"
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"{directory} names no pad_token, which prompts are padded with; add it to {_CONFIG}"
        )


def _length(directory: Path, tokenizer: Any, positions: int) -> int:
    """Return the number of tokens that prompts are padded and truncated to."""
    asked = tokenizer.model_max_length
    if not isinstance(asked, int) or asked < 1:
        raise CheckpointError(
            f"{directory}: model_max_length of {_CONFIG} is {asked!r}; must be a positive integer"
        )
    return min(asked, positions)


def _content(directory: Path, tokenizer: Any, length: int) -> str:
    # transformers sets these again at every call
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(length, direction=tokenizer.truncation_side)
    backend.enable_padding(
        length=length,
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
    )
    content: str = backend.to_str()
    if json.loads(content)["model"].get("dropout"):
        raise CheckpointError(
            f"{directory}: tokenizer.json has a dropout, which makes other ids every time; remove it"
        )
    return content


def _check_ids(directory: Path, tokenizer: Any, content: str, length: int) -> None:
    """Check that the plain library gives the same ids as transformers."""
    plain = Tokenizer.from_str(content)
    for text in _texts(tokenizer):
        wanted = tokenizer(text, padding="max_length", max_length=length, truncation=True).input_ids
        if plain.encode(text).ids != wanted:
            raise CheckpointError(
                f"{directory}: for the text {text[:40]!r} the plain tokenizers library gives other ids than"
                f" transformers; a {type(tokenizer).__name__} of this configuration is not supported"
            )


def _texts(tokenizer: Any) -> list[str]:
    """Return texts of every kind, and every added token alone, between others and in capitals."""
    added = [f"{token}, a {token} {token}{token.upper()}!" for token in tokenizer.added_tokens_encoder]
    return ["", "A photo of\na  Cat, 4k (don't)", "naïve 日本語 👩‍🚀", "word " * 300, *added]


def stand_in_tokenizer(network: Network) -> str:
    """Return a ``tokenizer.json`` that replaces a vocabulary that is not shipped: one token for each byte.

    It shares only the length of prompts and the special tokens (padding 0, end 1, unknown 2) with the real
    tokenizer: it is for text encoders with random weights only.
    """
    tokens = [*_STAND_IN_SPECIAL, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.add_special_tokens(list(_STAND_IN_SPECIAL))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    end = _STAND_IN_SPECIAL[1]
    tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    tokenizer.enable_truncation(network.tokens)
    tokenizer.enable_padding(length=network.tokens, pad_id=0, pad_token=_STAND_IN_SPECIAL[0])
    content: str = tokenizer.to_str()
    return content


def _check_readable(directory: Path) -> None:
    """Check that there is a vocabulary, and the library to read it. Without the check transformers makes an
    empty vocabulary, and asks for other libraries than the missing one."""
    if (directory / "tokenizer.json").is_file():
        return
    only = [path.name for path in directory.glob("*.model")]
    if not only and not all((directory / name).is_file() for name in _OF_BYTES):
        raise CheckpointError(
            f"{directory} has no vocabulary: neither tokenizer.json, nor {' with '.join(_OF_BYTES)}, nor a"
            " .model file; get the directory again"
        )
    if only and not is_installed("sentencepiece"):
        raise not_installed(
            f"{directory} has {only[0]} and no tokenizer.json; sentencepiece, which reads it, is not"
            " installed",
            "sentencepiece",
        )


def shipped_clip_tokenizer(directory: Path, network: Network, config: Mapping[str, Any]) -> str:
    """Return the content of ``tokenizer.json`` for a shipped ``directory`` with settings but without CLIP's
    vocabulary."""
    merges = gzip.decompress(_CLIP_MERGES.read_bytes()).decode()
    with temporary_directory("tokenizer") as complete:
        shutil.copytree(directory, complete, dirs_exist_ok=True)
        (complete / "merges.txt").write_text(merges, encoding="utf-8")
        (complete / "vocab.json").write_text(json.dumps(_clip_vocabulary(merges)), encoding="utf-8")
        return read_tokenizer(complete, network, config)


def _clip_vocabulary(merges: str) -> dict[str, int]:
    """Return CLIP's tokens: the 256 bytes inside a word, the same at its end, every merge, start and end of
    text."""
    letters = sorted(ByteLevel.alphabet())
    merged = [line.replace(" ", "") for line in merges.splitlines()[1:]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, *_CLIP_SPECIAL]
    return {token: number for number, token in enumerate(tokens)}
