"""Prompts to embeddings: tokens, encoders, what is cut off."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import LENGTH, WORDS, table, write_fake_bundle

from controlnext.errors import BundleError, InputError
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.text import TextEncoders


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


def test_what_is_cut_off_is_named_once(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    fits, long = "a red circle on a blue", "a red circle on a blue square on GREEN"
    embeddings = TextEncoders(bundle)([fits, long])
    np.testing.assert_array_equal(embeddings.hidden[0], embeddings.hidden[1])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "a prompt is longer than the text encoders read; this part is left out: square on GREEN"
    ]


def test_a_bundle_without_text_encoders_asks_for_embeddings(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle", text_encoders=False)
    with (
        Bundle.open(path, cache=False) as opened,
        pytest.raises(InputError, match="has no text encoders; give prompt_embeds"),
    ):
        TextEncoders(opened)(["a red circle"])


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    tokenizer = path / "tokenizer_2" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("circle", "sphere"))
    with (
        Bundle.open(path, cache=False) as opened,
        pytest.raises(BundleError, match=r"tokenizer_2/tokenizer\.json is damaged"),
    ):
        TextEncoders(opened)(["a red circle"])
