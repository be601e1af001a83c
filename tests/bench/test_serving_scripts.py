"""The benchmarks of batching and serving run, with few requests and a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import batching
import psutil
import pytest
import scale
import screenshot
import serving
from PIL import Image
from playwright.sync_api import sync_playwright

from controlnext.runtime.serving.settings import ServerSettings
from support.browser import require_browser
from support.fake_bundle import write_fake_bundle
from support.serving import serve


@contextmanager
def _served(bundle: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    names = {"--queue": "max_waiting", "--max-rows": "max_rows"}
    limits = {names[option]: int(value) for option, value in zip(options[::2], options[1::2], strict=True)}
    with serve([bundle], ServerSettings(**limits)) as site:  # type: ignore[arg-type]
        yield site.address, psutil.Process()


def test_batching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle")
    batching.main([str(bundle), "--requests", "4"])
    assert "| latents, largest difference | " in capsys.readouterr().out


def test_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every measure; images are those of calls alone, and nothing is left of clients that leave."""
    monkeypatch.setattr(serving, "served", _served)
    bundle = write_fake_bundle(tmp_path / "bundle")
    serving.main([str(bundle), "--requests", "2"])
    rows = capsys.readouterr().out
    assert rows.count("\n") == 2 + len(serving.MEASURES)
    assert "| 0 of 2 |" in rows
    assert "0 of 1 left" in rows


def test_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two measures, with a server in this process in place of a cluster, and what is counted of a strike."""

    @contextmanager
    def on_no_cluster(bundle: Path, *_options: str) -> Iterator[tuple[str, Any]]:
        with serve([bundle]) as site:
            # no replica is to be held to a core
            yield site.address, SimpleNamespace(children=lambda *, recursive: [])  # noqa: ARG005

    monkeypatch.setattr(scale, "served", on_no_cluster)
    bundle = write_fake_bundle(tmp_path / "bundle")
    scale.main([str(bundle), "--requests", "16", "--only", "replicas", "--only", "overhead"])
    assert capsys.readouterr().out.count("\n") == 4
    with on_no_cluster(bundle) as (address, _):
        told = scale.under_load(bundle, address, 64, 4, lambda: None)
    assert told.startswith("2 of 2 answered, 0 wrong, lost: none, ready in 0.")


def test_the_screenshot(tmp_path: Path) -> None:
    """It shows the result of a page that is used with the mouse."""
    with sync_playwright() as playwright:
        require_browser(playwright)
    picture = tmp_path / "serve.png"
    with serve([write_fake_bundle(tmp_path / "bundle")]) as site:
        screenshot.main([site.address, str(picture)])
    assert Image.open(picture).width == screenshot.SIZE["width"]
