"""The shipped CLIP vocabulary and the tokenizers made of it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer
from weights_models import SDXL

from controlnext.weights.shipped import shipped_folder, shipped_tokenizer
from controlnext.weights.tokenizers import _CLIP_MERGES, _clip_vocabulary, read_tokenizer

START, END = 49406, 49407
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
    config = {"max_position_embeddings": 77, "vocab_size": 49408}
    encoders = [network for network in SDXL.networks.values() if network.tokenizer]
    return {network.tokenizer: shipped_tokenizer(SDXL, network, config) for network in encoders}


@pytest.mark.parametrize(("name", "pad"), [("tokenizer", END), ("tokenizer_2", 0)])
def test_ids_of_a_known_prompt(contents: dict[str, str], name: str, pad: int) -> None:
    """The ids that every CLIP gives "a photo of a cat"; the second tokenizer pads with "!"."""
    ids = Tokenizer.from_str(contents[name]).encode("a photo of a cat").ids
    assert ids == [START, 320, 1125, 539, 320, 2368, END, *[pad] * 70]


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_the_plain_library_gives_the_ids_of_transformers(
    contents: dict[str, str], name: str, tmp_path: Path
) -> None:
    shutil.copytree(shipped_folder(SDXL) / name, tmp_path, dirs_exist_ok=True)
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
    shutil.copytree(shipped_folder(SDXL) / "tokenizer_2", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(contents["tokenizer_2"], encoding="utf-8")
    assert read_tokenizer(tmp_path, 77, 49408) == contents["tokenizer_2"]


def test_a_text_encoder_of_fewer_positions_shortens_the_prompt(
    contents: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(shipped_folder(SDXL) / "tokenizer", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(contents["tokenizer"], encoding="utf-8")
    ids = Tokenizer.from_str(read_tokenizer(tmp_path, 16, 49408)).encode("word " * 200).ids
    assert (len(ids), ids[-1]) == (16, END)


def test_the_vocabulary_is_attributed() -> None:
    assert "MIT License" in (_CLIP_MERGES.parent / "LICENSE").read_text()
