"""Pipelines of fake bundles that several files of this directory call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path = write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle")
    with Pipeline.load(path, cache=False) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Without text encoders, and without zeros for a missing negative prompt."""
    folder = tmp_path_factory.mktemp("bare") / "bundle"
    with Pipeline.load(
        write_fake_bundle(folder, text_encoders=False, force_zeros=False), cache=False
    ) as made:
        yield made
