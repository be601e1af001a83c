"""The bundle that the tests of the HTTP application serve, and a pipeline of its own to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle
from support.ray_site import shared_server
from support.serving import KEYS, Site, connected, open_pipeline, serve

MOST_BYTES, MOST_PIXELS = 1 << 20, 64 * 1024
"""Limits of the servers."""


@pytest.fixture(scope="package")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("served") / "toy")


@pytest.fixture(scope="package")
def alone(toy: Path) -> Iterator[Pipeline]:
    """Return the pipeline of :func:`toy`, without a server."""
    with open_pipeline(toy) as pipe:
        yield pipe


@pytest.fixture(scope="package")
def here(toy: Path) -> Iterator[Site]:
    """Return a server of :func:`toy` in this process, with low limits and with keys."""
    settings = ServerSettings(
        max_steps=20,
        max_size=64,
        max_images=4,
        max_pixels=MOST_PIXELS,
        max_body=MOST_BYTES,
        api_keys=KEYS,
    )
    with serve([toy], settings) as site:
        yield site


@pytest.fixture(scope="package")
def on_ray(toy: Path, shared_folder: Path) -> Iterator[Site]:
    """Return the same server on a Ray cluster, with two replicas."""
    keys = shared_folder / "keys"
    keys.write_text("\n".join(KEYS))
    limits = {"steps": 20, "size": 64, "images": 4, "pixels": MOST_PIXELS, "body": MOST_BYTES >> 20}
    options = [f"--max-{name}={value}" for name, value in limits.items()]
    options += [f"--api-keys={keys}", "--ray", "--replicas=2", "--threads=1", "--device=cpu"]
    with shared_server(shared_folder / "ray", [str(toy), *options]) as address, connected(address) as http:
        yield Site(address, None, None, None, http)


@pytest.fixture(scope="package", params=["here", "on_ray"])
def site(request: pytest.FixtureRequest) -> Site:
    """Return either server: what is tested with this one has to hold for both."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="package")
def client(site: Site) -> openai.OpenAI:
    return site.openai()
