"""The bundle that the tests of the HTTP application serve, and a pipeline of its own to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle
from support.serving import Site, open_pipeline, serve


@pytest.fixture(scope="package")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("served") / "toy")


@pytest.fixture(scope="package")
def alone(toy: Path) -> Iterator[Pipeline]:
    """Return the pipeline of :func:`toy`, without a server."""
    with open_pipeline(toy) as pipe:
        yield pipe


@pytest.fixture(scope="package")
def site(toy: Path) -> Iterator[Site]:
    """Return a server of :func:`toy` with low limits."""
    with serve([toy], ServerSettings(max_steps=20, max_size=64, max_images=4, max_pixels=128 * 128)) as site:
        yield site


@pytest.fixture(scope="package")
def client(site: Site) -> openai.OpenAI:
    return site.openai()
