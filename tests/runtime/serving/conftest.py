"""The bundle that the tests of the HTTP application serve, and a pipeline of its own to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.settings import ServerSettings
from support.browser import Visit, open_browser
from support.fake_bundle import write_fake_bundle
from support.fake_clips import write_fake_clips
from support.idle_clips import idle_pipeline, no_noise, open_idle
from support.ray_site import shared_server
from support.serving import KEYS, Site, connected, open_pipeline, serve

MOST_BYTES, MOST_PIXELS = 1 << 20, 64 * 1024
"""Limits of the servers."""
SMALL = 0.000001
"""GiB: less than any bundle takes."""


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
    with at_ray(shared_folder / "ray", [toy], options) as site:
        yield site


@pytest.fixture(scope="package")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of two controls."""
    return write_fake_bundle(tmp_path_factory.mktemp("served") / "pair", "sd15", controls=2)


@pytest.fixture(scope="package")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that makes clips."""
    return write_fake_clips(tmp_path_factory.mktemp("served") / "clips")


@pytest.fixture(scope="package")
def several_here(toy: Path, pair: Path, clips: Path) -> Iterator[Site]:
    """Return a server of three bundles, of which one at a time has room."""
    limits = ServerSettings(max_frames=6, max_size=64, max_pixels=4096, memory=SMALL)
    with serve([toy, pair, clips], limits) as site:
        yield site


@pytest.fixture(scope="package")
def several_on_ray(toy: Path, pair: Path, clips: Path, shared_folder: Path) -> Iterator[Site]:
    """Return the same server on a Ray cluster, with two replicas."""
    options = ["--max-frames=6", "--max-size=64", "--max-pixels=4096", f"--memory={SMALL}"]
    options += ["--ray", "--replicas=2", "--threads=1", "--device=cpu"]
    with at_ray(shared_folder / "several-on-ray", [toy, pair, clips], options) as site:
        yield site


@pytest.fixture(scope="package", params=["several_here", "several_on_ray"])
def several(request: pytest.FixtureRequest) -> Site:
    """Return either server of several bundles."""
    return request.getfixturevalue(request.param)


@contextmanager
def at_ray(directory: Path, bundles: list[Path], options: list[str]) -> Iterator[Site]:
    """Yield a server of these bundles on a cluster of this machine."""
    given = [*map(str, bundles), *options]
    with shared_server(directory, given) as (address, pid), connected(address) as http:
        yield Site(address, None, None, None, http, pid)


@pytest.fixture(scope="package", params=["here", "on_ray"])
def site(request: pytest.FixtureRequest) -> Site:
    """Return either server: what is tested with this one has to hold for both."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="package")
def client(site: Site) -> openai.OpenAI:
    return site.openai()


@pytest.fixture(scope="module")
def page_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("served")
    toy, clips = write_fake_bundle(folder / "toy", shallow=True), folder / "clips"
    pair = write_fake_bundle(folder / "pair", controls=2)
    idle_pipeline(clips, no_noise).close()

    def load(path: Path) -> Pipeline:
        return open_idle(path, no_noise) if path == clips else open_pipeline(path)

    with serve([toy, pair, clips], load=load) as made:
        yield made


@pytest.fixture(scope="module")
def tab(page_site: Site) -> Iterator[Visit]:
    """Return the only tab: to open one takes longer than to open the page again."""
    with open_browser() as browser:
        yield Visit(browser, f"{page_site.address}/")


@pytest.fixture
def visit(tab: Visit) -> Visit:
    tab.open()
    return tab
