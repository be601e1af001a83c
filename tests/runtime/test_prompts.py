"""Prompts to embeddings: tokens, encoders, what is cut off."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from controlnext.errors import BundleError, InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.prompts import Embeddings, TextEncoders
from support.fake_bundle import LENGTH, table, write_fake_bundle
from support.fake_tokenizer import WORDS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle")
    with Bundle.open(path, cache=False) as opened:
        yield opened


def _ids(*words: str) -> list[int]:
    ids = [WORDS.index(word) for word in ("<start>", *words, "<end>")]
    return ids + [0] * (LENGTH - len(ids))


def test_embeddings_of_both_encoders_side_by_side(bundle: Bundle) -> None:
    """Hidden states are concatenated on the last axis; the pooled embedding is the second encoder's."""
    embeddings = TextEncoders(bundle)(["a Red circle", "blue"])
    ids = np.array([_ids("a", "red", "circle"), _ids("blue")])
    assert embeddings.hidden.shape == (2, LENGTH, 16)
    np.testing.assert_array_equal(embeddings.hidden[..., :6], table(6)[ids])
    np.testing.assert_array_equal(embeddings.hidden[..., 6:], table(10)[ids])
    assert embeddings.pooled is not None
    np.testing.assert_allclose(embeddings.pooled, table(10)[ids].mean(1)[:, :5], rtol=1e-5, atol=1e-6)


def _encode(path: Path, *prompts: str) -> Embeddings:
    with Bundle.open(path, cache=False) as opened:
        return TextEncoders(opened)(prompts)


def test_a_token_of_two_vectors_of_one_tokenizer(tmp_path: Path) -> None:
    """The added token has two vectors in the second tokenizer and is a word in the first."""
    bundle = write_fake_bundle(tmp_path / "bundle", added={"tokenizer_2": ["toy", "toy_1"]})
    hidden, _ = _encode(bundle, "a toy, blue")
    np.testing.assert_array_equal(hidden[0, :, :6], table(6)[_ids("a", "toy", "<unknown>", "blue")])
    wanted = table(10)[_ids("a", "toy", "toy_1", "<unknown>", "blue")]
    np.testing.assert_array_equal(hidden[0, :, 6:], wanted)


def test_a_token_of_two_vectors_is_one_for_sd3(tmp_path: Path) -> None:
    """Its pipeline in diffusers loads no textual inversions."""
    added = dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"), ("toy", "toy_1"))
    hidden, _ = _encode(write_fake_bundle(tmp_path / "bundle", "sd3", added=added), "a toy")
    np.testing.assert_array_equal(hidden[0, :LENGTH, :6], table(6)[_ids("a", "toy")])


def test_a_sequence_encoders_tokens_follow(tmp_path: Path) -> None:
    """sd3: the joined hidden states widened by zeros, then the third encoder's; pooled ones side by side."""
    hidden, pooled = _encode(write_fake_bundle(tmp_path / "bundle", "sd3"), "a red circle", "blue")
    ids = np.array([_ids("a", "red", "circle"), _ids("blue")])
    long = np.zeros((2, 256), int)
    long[0, :4], long[1, :2] = ids[0, 1:5], ids[1, 1:3]
    assert hidden.shape == (2, LENGTH + 256, 20)
    np.testing.assert_array_equal(hidden[:, :LENGTH, :6], table(6)[ids])
    np.testing.assert_array_equal(hidden[:, :LENGTH, 6:16], table(10)[ids])
    assert not hidden[:, :LENGTH, 16:].any()
    np.testing.assert_array_equal(hidden[:, LENGTH:], table(20)[long])
    assert pooled is not None
    wanted = np.concatenate([table(6)[ids].mean(1)[:, :3], table(10)[ids].mean(1)[:, :5]], axis=1)
    np.testing.assert_allclose(pooled, wanted, rtol=1e-5, atol=1e-6)


def test_a_missing_sequence_encoder_gives_zeros(tmp_path: Path) -> None:
    """As many tokens as that encoder would have given."""
    whole = _encode(write_fake_bundle(tmp_path / "whole", "sd3"), "a red circle")
    bare = _encode(write_fake_bundle(tmp_path / "bare", "sd3", leave_out=["text_encoder_3"]), "a red circle")
    np.testing.assert_array_equal(bare.hidden[:, :LENGTH], whole.hidden[:, :LENGTH])
    assert bare.hidden.shape == whole.hidden.shape
    assert not bare.hidden[:, LENGTH:].any()


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_what_is_cut_off_is_named_once(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    fits, long = "a red circle on a blue", "a red circle on a blue square on GREEN"
    embeddings = TextEncoders(bundle)([fits, long, long])
    np.testing.assert_array_equal(embeddings.hidden[0], embeddings.hidden[1])
    assert _warnings(caplog) == [
        "a prompt is too long for text_encoder, text_encoder_2; this part is ignored: square on GREEN"
    ]


def test_encoders_of_different_lengths_cut_off_different_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_fake_bundle(tmp_path / "bundle", "sd3")
    _encode(path, "a red circle on a blue square")
    short = "a prompt is too long for text_encoder, text_encoder_2; this part is ignored: "
    assert _warnings(caplog) == [short + "square"]
    caplog.clear()
    _encode(path, "red " * 255 + "green square")
    assert _warnings(caplog) == [
        short + "red " * 249 + "green square",
        "a prompt is too long for text_encoder_3; this part is ignored: green square",
    ]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_a_bundle_without_text_encoders_asks_for_embeddings(name: str, tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle", name, text_encoders=False)
    with pytest.raises(InputError, match="has no text encoders; give `prompt_embeds`"):
        _encode(path, "a red circle")


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_bundle_with_some_text_encoders_names_those_that_are_missing(name: str, tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle", name, leave_out=["text_encoder_2"])
    message = (
        "has no text_encoder_2 to read prompts; give `prompt_embeds`.* has text_encoder, text_encoder_2$"
    )
    with pytest.raises(InputError, match=message):
        _encode(path, "a red circle")


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    tokenizer = path / "tokenizer_2" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("circle", "sphere"))
    with pytest.raises(BundleError, match=r"tokenizer_2/tokenizer\.json is damaged"):
        _encode(path, "a red circle")
