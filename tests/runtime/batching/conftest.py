"""A pipeline whose requests are batched, and a gate before its denoiser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle
from support.gate import Gate
from support.image_calls import arguments


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path = write_fake_bundle(tmp_path_factory.mktemp("batched") / "bundle", shallow=True)
    with Pipeline.load(path, cache=False) as pipe:
        pipe(**arguments())
        yield pipe


@pytest.fixture
def gate(warm: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(warm.bundle.engine("unet"), monkeypatch)
