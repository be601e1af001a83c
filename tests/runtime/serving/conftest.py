"""The bundle that the tests of the HTTP application serve, and a pipeline of its own to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle
from support.serving import open_pipeline


@pytest.fixture(scope="package")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("served") / "toy")


@pytest.fixture(scope="package")
def alone(toy: Path) -> Iterator[Pipeline]:
    """Return the pipeline of :func:`toy`, without a server."""
    with open_pipeline(toy) as pipe:
        yield pipe
