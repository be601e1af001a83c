"""A tokenizer's settings are followed as transformers follows them, harmless, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from controlnext.errors import CheckpointError
from controlnext.families import get_family
from controlnext.weights.tokenizer_config import CLASSES, HARMLESS, REFUSED, SUPPORTED
from controlnext.weights.tokenizers import check_lengths, read_tokenizer
from support.tokenizer_files import ADDED, KNOWN, VOCABULARY, write_fast, write_settings, write_slow
from support.weights_models import rewrite_json

SDXL = get_family("sdxl")
NETWORK = SDXL.networks["text_encoder"]
TEXTS = ["", "A red <toy>, a Circle!", "red circle " * 60, "<|endoftext|> a", "cat-toy<one>"]
WRITERS = pytest.mark.parametrize("write", [write_slow, write_fast], ids=["slow", "fast"])


def _read(folder: Path, **known: int) -> str:
    return read_tokenizer(folder, NETWORK, KNOWN | known)


def _assert_as_transformers(folder: Path, cls: str = "CLIPTokenizer") -> None:
    plain, stock = Tokenizer.from_str(_read(folder)), getattr(transformers, cls).from_pretrained(folder)
    for text in TEXTS:
        length = stock.model_max_length
        wanted = stock(text, padding="max_length", max_length=length, truncation=True).input_ids
        assert plain.encode(text).ids == wanted, text


@WRITERS
@pytest.mark.parametrize(
    "settings",
    [
        {"model_max_length": 20},
        {"padding_side": "left"},
        {"truncation_side": "left"},
        {"pad_token": "<|endoftext|>"},
        {"pad_token": "<one>"},
        {"unk_token": "!"},
        {"bos_token": "!"},
        {"eos_token": "<toy>"},
        {"add_bos_token": False, "add_eos_token": False},
        {"add_prefix_space": True, "legacy": False, "do_lower_case": False},
        {"clean_up_tokenization_spaces": True, "errors": "strict", "split_special_tokens": False},
        {"additional_special_tokens": ["<toy>"]},
        {"extra_special_tokens": ["<one>", "red"]},
        {"mask_token": "circle", "image_token": "<toy>_1"},
        {"backend": "tokenizers", "max_length": 5, "stride": 3, "truncation_strategy": "only_first"},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_settings_have_the_ids_of_transformers(tmp_path: Path, write: Any, settings: dict[str, Any]) -> None:
    _assert_as_transformers(write(tmp_path / "tokenizer", **settings))


@WRITERS
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split_special_tokens", True),
        ("auto_map", {"AutoTokenizer": ["tokenization_mine.MyTokenizer", None]}),
        ("sp_model_kwargs", {"enable_sampling": True}),
        ("init_inputs", ["a"]),
        ("gguf_file", "model.gguf"),
    ],
)
def test_what_the_runtime_cannot_do_is_refused(tmp_path: Path, write: Any, key: str, value: Any) -> None:
    folder = write(tmp_path / "tokenizer", **{key: value})
    with pytest.raises(CheckpointError, match=rf"tokenizer: {key} of tokenizer_config.json is .*accepted: "):
        _read(folder)


def test_every_refused_key_is_tried_and_no_key_is_decided_twice() -> None:
    (marks,) = (
        m for m in test_what_the_runtime_cannot_do_is_refused.pytestmark if m.args[0] == ("key", "value")
    )
    assert [key for key, _ in marks.args[1]] == list(REFUSED)
    assert len(SUPPORTED | HARMLESS.keys() | REFUSED.keys()) == len(SUPPORTED) + len(HARMLESS) + len(REFUSED)


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "MyTokenizer", None])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path, named: str | None) -> None:
    folder = write_fast(tmp_path / "tokenizer", tokenizer_class=named)
    with pytest.raises(CheckpointError, match=rf"class is {named or 'not named'}; accepted: CLIPTokenizer, "):
        _read(folder)


def test_the_class_is_the_one_that_diffusers_loads(tmp_path: Path) -> None:
    """That of the model index; what the tokenizer's own settings say of it does not count."""
    folder = write_slow(tmp_path / "tokenizer", tokenizer_class="GPT2Tokenizer")
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"tokenizer": ["transformers", "CLIPTokenizer"]}))
    _assert_as_transformers(folder)
    for library, cls in (("transformers", "GPT2Tokenizer"), ("mine", "CLIPTokenizer")):
        rewrite_json(index, tokenizer=[library, cls])
        with pytest.raises(
            CheckpointError, match=r"its class is (GPT2Tokenizer|mine.CLIPTokenizer); accepted"
        ):
            _read(folder)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_accepted_class_can_be_read(tmp_path: Path, cls: str) -> None:
    if not cls.startswith("T5"):
        _assert_as_transformers(write_fast(tmp_path / "tokenizer", tokenizer_class=cls), CLASSES[cls])


def test_what_tokenizer_json_alone_says_is_followed(tmp_path: Path) -> None:
    """The plain class takes normalization and padding from the file."""
    folder = write_fast(tmp_path / "tokenizer", tokenizer_class="PreTrainedTokenizerFast", pad_token=None)
    padding = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": 4}
    padding |= {"pad_id": 5, "pad_type_id": 0, "pad_token": "!"}
    truncation = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 2}
    rewrite_json(folder / "tokenizer.json", normalizer=None, padding=padding, truncation=truncation)
    _assert_as_transformers(folder, "PreTrainedTokenizerFast")


def test_a_tokenizer_that_chances_is_refused(tmp_path: Path) -> None:
    folder = write_fast(tmp_path / "tokenizer", tokenizer_class="PreTrainedTokenizerFast")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    rewrite_json(folder / "tokenizer.json", model={**model, "dropout": 0.1})
    with pytest.raises(CheckpointError, match=r"tokenizer.json has a dropout"):
        _read(folder)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    folder = write_fast(tmp_path / "tokenizer", tokenizer_class="PreTrainedTokenizerFast", pad_token=None)
    with pytest.raises(CheckpointError, match=r"names no pad_token"):
        _read(folder)


@pytest.mark.parametrize("length", [0, -5, 77.5, "77"])
def test_a_length_that_is_none_is_refused(tmp_path: Path, length: Any) -> None:
    folder = write_fast(tmp_path / "tokenizer", model_max_length=length)
    with pytest.raises(CheckpointError, match=rf"model_max_length of tokenizer_config.json is '?{length}"):
        _read(folder)


def test_unknown_keys_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _assert_as_transformers(write_fast(tmp_path / "tokenizer", errors="replace", some_new_key=1))
    (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("controlnext"))
    assert "the unknown keys some_new_key in tokenizer_config.json are ignored" in message


def test_an_id_that_transformers_does_not_give_is_refused(tmp_path: Path) -> None:
    """transformers numbers added tokens without gaps: a token would get another's embedding."""
    folder = write_slow(tmp_path / "tokenizer")
    write_settings(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<toy>": len(VOCABULARY) + 1}))
    wanted = (
        rf"added_tokens.json gives the token <toy> the id {len(VOCABULARY) + 1}, but .* {len(VOCABULARY)};"
    )
    with pytest.raises(CheckpointError, match=wanted):
        _read(folder)


def test_added_tokens_without_embeddings_are_refused(tmp_path: Path) -> None:
    folder = write_fast(tmp_path / "tokenizer")
    tokens = len(VOCABULARY) + len(ADDED)
    _read(folder, vocab_size=tokens)
    with pytest.raises(CheckpointError, match=rf"has {tokens} tokens, its text encoder has {tokens - 1}"):
        _read(folder, vocab_size=tokens - 1)


def test_prompts_of_different_lengths_cannot_be_joined(tmp_path: Path) -> None:
    contents = {
        name: _read(write_fast(tmp_path / name, model_max_length=length))
        for name, length in (("tokenizer", 77), ("tokenizer_2", 64))
    }
    check_lengths(contents, [NETWORK])
    with pytest.raises(CheckpointError, match=r"different lengths: .*'tokenizer': 77, 'tokenizer_2': 64"):
        check_lengths(contents, SDXL.networks.values())


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    """transformers would make an empty one, and every prompt the same."""
    folder = tmp_path / "tokenizer"
    write_slow(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(
        CheckpointError, match=r"no vocabulary: neither tokenizer\.json, nor vocab\.json with"
    ):
        _read(folder)
