"""The treatment of every key of a ``tokenizer_config.json``: supported, harmless, or an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from controlnext.errors import CheckpointError

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "CLIPTokenizer": "CLIPTokenizerFast",
        "CLIPTokenizerFast": "CLIPTokenizerFast",
        "T5Tokenizer": "T5TokenizerFast",
        "T5TokenizerFast": "T5TokenizerFast",
        "PreTrainedTokenizerFast": "PreTrainedTokenizerFast",
        "TokenizersBackend": "PreTrainedTokenizerFast",
    }
)
"""The tokenizer classes of the families' pipelines, each with the class that gives the same ids and is based
on ``tokenizers.Tokenizer`` in every release of transformers."""

SUPPORTED = frozenset(
    {
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "extra_ids"),
        *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"),
        *("model_max_length", "max_len", "padding_side", "truncation_side", "tokenizer_class", "backend"),
    }
)
"""Keys that transformers builds the tokenizer from; a bundle gets that tokenizer."""

_DECODING = "it is about decoding ids to text"
_CHAT = "it is about chats"
_CALL = "pipelines set it in each call"
_PATH = "it is the path of a file"
HARMLESS: Mapping[str, str] = MappingProxyType(
    {
        "clean_up_tokenization_spaces": _DECODING,
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": _DECODING,
        "errors": _DECODING,
        "chat_template": _CHAT,
        "response_template": _CHAT,
        "response_schema": _CHAT,
        "chat_control_tokens": _CHAT,
        "max_length": _CALL,
        "padding": _CALL,
        "truncation": _CALL,
        "pad_to_multiple_of": _CALL,
        "stride": _CALL,
        "truncation_strategy": _CALL,
        "pad_token_type_id": "text encoders get ids alone",
        "model_input_names": "text encoders get ids alone",
        "name_or_path": _PATH,
        "vocab_file": _PATH,
        "merges_file": _PATH,
        "tokenizer_file": _PATH,
        "special_tokens_map_file": _PATH,
        "is_local": _PATH,
        "local_files_only": _PATH,
        "do_lower_case": "CLIP's tokenizer always converts to lower case, T5's never",
        "use_fast": "both kinds give the same ids",
        "from_slow": "both kinds give the same ids",
        "device_map": "a tokenizer is on no device",
        "processor_class": "it names a class of other models",
        "trust_remote_code": "auto_map names such code",
        "verbose": "it is about messages",
    }
)
"""Keys that change no id, each with the reason."""


class Refusal(NamedTuple):
    """The treatment of a key that is not supported; ``accepted``: the values that are, the preferred one
    first."""

    accepted: tuple[Any, ...]
    reason: str


REFUSED: Mapping[str, Refusal] = MappingProxyType(
    {
        "split_special_tokens": Refusal(
            (False, None), "special tokens in prompts are read as text, which a tokenizer.json cannot express"
        ),
        "auto_map": Refusal((None, {}), "it names code that comes with the checkpoint"),
        "sp_model_kwargs": Refusal((None, {}), "it changes how sentencepiece divides words, at random too"),
        "init_inputs": Refusal(([], None), "its arguments have no names"),
        "gguf_file": Refusal((None,), "it names a file of another format"),
    }
)
"""Keys that the runtime does not support."""


def check_tokenizer_config(directory: Path, config: Mapping[str, Any]) -> list[str]:
    """Return the unknown keys of ``config``, of the tokenizer in ``directory``.

    Raises :class:`CheckpointError` naming a key that asks for something the runtime does not support.
    """
    for key, (accepted, reason) in REFUSED.items():
        if key in config and config[key] not in accepted:
            raise CheckpointError(
                f"{directory}: {key} of tokenizer_config.json is {config[key]!r}, which is not supported:"
                f" {reason}; accepted: {accepted[0]!r}"
            )
    return [key for key in config if not _is_known(key, config[key])]


def _is_known(key: str, value: Any) -> bool:
    # null asks for nothing; further special tokens have names of their own (image_token)
    special = key.endswith("_token") and isinstance(value, str | dict)
    return special or value is None or key in SUPPORTED or key in HARMLESS or key in REFUSED


def class_of(directory: Path, named: str) -> str:
    """Return the transformers class that loads the tokenizer in ``directory``, whose configuration has the
    class ``named``. Raises :class:`CheckpointError` for an unsupported class."""
    if named not in CLASSES:
        raise CheckpointError(
            f"{directory}: its class is {named or 'not named'}; accepted: {', '.join(CLASSES)}"
            " (in model_index.json, or as tokenizer_class in tokenizer_config.json)"
        )
    return CLASSES[named]


def asked_ids(files: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str, int]]:
    """Yield the file, the token and its id for every added token in a tokenizer's ``files``."""
    for token, index in files.get("added_tokens.json", {}).items():
        yield "added_tokens.json", token, int(index)
    for index, token in files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {}).items():
        yield "tokenizer_config.json", token["content"], int(index)
    for token in files.get("tokenizer.json", {}).get("added_tokens", ()):
        yield "tokenizer.json", token["content"], int(token["id"])
