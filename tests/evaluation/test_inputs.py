"""The test prompt of a comparison with PyTorch has an added token of each tokenizer."""

from __future__ import annotations

from pathlib import Path

from controlnext.bundle.reader import read_manifest
from controlnext.evaluation.inputs import added_words, default_run
from support.fake_bundle import write_fake_bundle


def _prompt(bundle: Path) -> str | None:
    manifest = read_manifest(bundle)
    return default_run(manifest, added_words(bundle, manifest)).prompt


def test_the_prompt_has_a_token_of_each_tokenizer_that_got_some(tmp_path: Path) -> None:
    """Tokens of several vectors are preferred, so that a comparison shows whether all are used."""
    plain = write_fake_bundle(tmp_path / "plain")
    assert _prompt(plain) == "a red circle on a blue background"
    added = {"tokenizer": ["green", "toy", "toy_1"], "tokenizer_2": ["square"]}
    one_each = write_fake_bundle(tmp_path / "one-each", added=added)
    assert _prompt(one_each) == "a red circle toy square on a blue background"
    shared = write_fake_bundle(tmp_path / "shared", added=dict.fromkeys(added, ("toy", "toy_1")))
    assert _prompt(shared) == "a red circle toy on a blue background"


def test_a_bundle_that_reads_no_prompts_has_none(tmp_path: Path) -> None:
    assert _prompt(write_fake_bundle(tmp_path / "bundle", "sd15", text_encoders=False)) is None
