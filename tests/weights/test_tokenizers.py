"""The shipped CLIP vocabulary and the tokenizers made of it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from controlnext.errors import CheckpointError, MissingDependencyError
from controlnext.families import get_family
from controlnext.weights import tokenizers
from controlnext.weights.shipped import shipped_directory, shipped_tokenizer
from controlnext.weights.tokenizers import _CLIP_MERGES, _clip_vocabulary, read_tokenizer, stand_in_tokenizer
from support.weights_models import SDXL, t5_tokenizer

START, END = 49406, 49407
NETWORK = SDXL.networks["text_encoder"]
CLIP = {"max_position_embeddings": 77, "vocab_size": 49408}
T5 = get_family("sd3").networks["text_encoder_3"]
TEXTS = [
    "",
    "a photo of a cat",
    "A PHOTO  of\na\tCat!",
    "don't you'll we've I'm it's she'd they're",
    "1234567890 4k 8K, 3.5%",
    "masterpiece, best quality, (1girl:1.2), [blue|red] {hair} --ar 16:9",
    "naïve café ÀÉÎ ñ n\u0303 ß",
    "日本語のテキスト 한국어 Привет ελληνικά",
    "👩‍🚀 emoji 🎨🚀",
    "<|endoftext|> inside <|startoftext|>",
    "hello! world!",
    "word " * 200,
]


@pytest.fixture(scope="module")
def contents() -> dict[str, str]:
    encoders = [network for network in SDXL.networks.values() if network.tokenizer]
    return {network.tokenizer: shipped_tokenizer(SDXL, network, CLIP) for network in encoders}


@pytest.mark.parametrize(("name", "pad"), [("tokenizer", END), ("tokenizer_2", 0)])
def test_ids_of_a_known_prompt(contents: dict[str, str], name: str, pad: int) -> None:
    """The ids that every CLIP gives "a photo of a cat"; the second tokenizer pads with "!"."""
    ids = Tokenizer.from_str(contents[name]).encode("a photo of a cat").ids
    assert ids == [START, 320, 1125, 539, 320, 2368, END, *[pad] * 70]


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_the_plain_library_gives_the_ids_of_transformers(
    contents: dict[str, str], name: str, tmp_path: Path
) -> None:
    shutil.copytree(shipped_directory(SDXL) / name, tmp_path, dirs_exist_ok=True)
    merges = gzip.decompress(_CLIP_MERGES.read_bytes()).decode()
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(_clip_vocabulary(merges)))
    reference = CLIPTokenizer.from_pretrained(tmp_path)
    plain = Tokenizer.from_str(contents[name])
    for text in TEXTS:
        expected = reference(text, padding="max_length", truncation=True).input_ids
        assert plain.encode(text).ids == expected, text
        assert len(expected) == 77


def test_a_saved_tokenizer_is_read_back_the_same(contents: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(shipped_directory(SDXL) / "tokenizer_2", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(contents["tokenizer_2"], encoding="utf-8")
    assert read_tokenizer(tmp_path, NETWORK, CLIP) == contents["tokenizer_2"]


def test_a_text_encoder_of_fewer_positions_shortens_the_prompt(
    contents: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(shipped_directory(SDXL) / "tokenizer", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(contents["tokenizer"], encoding="utf-8")
    ids = (
        Tokenizer.from_str(read_tokenizer(tmp_path, NETWORK, CLIP | {"max_position_embeddings": 16}))
        .encode("word " * 200)
        .ids
    )
    assert (len(ids), ids[-1]) == (16, END)


def test_the_vocabulary_is_attributed() -> None:
    assert "MIT License" in (_CLIP_MERGES.parent / "LICENSE").read_text()


def test_t5_pads_and_cuts_to_the_length_of_its_prompts(tmp_path: Path) -> None:
    """As diffusers' SD3 pipeline calls it: 256 tokens, whatever the tokenizer's own limit is."""
    reference = t5_tokenizer()
    reference.save_pretrained(tmp_path)
    plain = Tokenizer.from_str(read_tokenizer(tmp_path, T5, {"vocab_size": 160}))
    for text in TEXTS:
        arguments = {"padding": "max_length", "max_length": 256, "truncation": True}
        assert plain.encode(text).ids == reference(text, **arguments).input_ids, text
    ids = plain.encode("a photo of cats").ids
    assert ids[:7] == [3, 5, 6, 4, 8, 1, 0]
    assert len(ids) == 256


def test_a_t5_tokenizer_of_an_older_release_has_the_same_ids(tmp_path: Path) -> None:
    """As SD3's bases have it, saved by transformers 4: sentinels among the added tokens, old settings."""
    t5_tokenizer().save_pretrained(tmp_path)
    today = Tokenizer.from_str(read_tokenizer(tmp_path, T5, {"vocab_size": 160}))
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {0: "<pad>", 1: "</s>", 2: "<unk>", **{21 + n: f"<extra_id_{99 - n}>" for n in range(100)}}
    settings = {
        "add_prefix_space": None,
        "added_tokens_decoder": {str(index): {"content": word, **special} for index, word in added.items()},
        "additional_special_tokens": [f"<extra_id_{number}>" for number in range(100)],
        "clean_up_tokenization_spaces": True,
        "extra_ids": 100,
        "legacy": True,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        **{"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 512},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    older = Tokenizer.from_str(read_tokenizer(tmp_path, T5, {"vocab_size": 160}))
    for text in [*TEXTS, "a <extra_id_0> cat<extra_id_99>"]:
        assert older.encode(text).ids == today.encode(text).ids, text


def test_a_t5_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    t5_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokens, its text encoder has 50"):
        read_tokenizer(tmp_path, T5, {"vocab_size": 50})


def test_a_sentencepiece_vocabulary_alone_names_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spiece.model").write_bytes(b"")
    monkeypatch.setattr(tokenizers, "is_installed", lambda _name: False)
    with pytest.raises(MissingDependencyError, match=r"spiece.model and no tokenizer.json.*pip install"):
        read_tokenizer(tmp_path, T5, {"vocab_size": 160})


def test_a_sentencepiece_vocabulary_gives_the_same_tokenizer(tmp_path: Path) -> None:
    """The vocabulary of the other T5 tests, in the file that T5 was published with."""
    pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    t5_tokenizer().save_pretrained(tmp_path / "fast")
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.unk_id = 2
    model.normalizer_spec.name = "identity"
    vocabulary = json.loads((tmp_path / "fast" / "tokenizer.json").read_text())["model"]["vocab"]
    for number, (word, score) in enumerate(vocabulary):
        if not word.startswith("<extra_id_"):
            model.pieces.add(piece=word, score=score, type={0: 3, 1: 3, 2: 2}.get(number, 1))
    (tmp_path / "spiece").mkdir()
    (tmp_path / "spiece" / "spiece.model").write_bytes(model.SerializeToString())
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512}
    (tmp_path / "spiece" / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = (
        Tokenizer.from_str(read_tokenizer(tmp_path / name, T5, {"vocab_size": 160}))
        for name in ("spiece", "fast")
    )
    assert all(ours.encode(text).ids == theirs.encode(text).ids for text in TEXTS)


def test_the_stand_in_gives_every_text_ids_that_the_text_encoder_knows() -> None:
    plain = Tokenizer.from_str(stand_in_tokenizer(T5))
    assert plain.get_vocab_size() == 3 + 256
    for text in TEXTS:
        encoded = plain.encode(text)
        length = min(len(text.encode()), 255)
        assert len(encoded.ids) == 256
        assert encoded.ids[length:] == [1, *[0] * (255 - length)]
        assert min(encoded.ids[:length], default=3) >= 3
    assert plain.encode("a").ids != plain.encode("b").ids
