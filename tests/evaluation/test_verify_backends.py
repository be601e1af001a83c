"""``verify`` compares built engines as well as ONNX Runtime, at sizes that they accept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from controlnext.engines.built import usable_backends
from controlnext.evaluation.inputs import default_run, fit_run, graph_feeds
from support.cli import Cli
from support.fake_bundle import write_fake_bundle
from support.stand_in_gpu import LARGEST, SMALLEST, put_in_place, write_engine

SMALL = {"batch": 1, "control_batch": 1, "height": 9, "width": 10, "sequence": 77}
LARGE = {"batch": 2, "control_batch": 2, "height": 12, "width": 14, "sequence": 77}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", text_encoders=False)


@pytest.mark.parametrize("wrong", [False, True])
def test_verify_compares_built_engines_too(
    wrong: bool,
    tiny: Callable[..., Path],
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stand-in computes the graph or something else, and the table shows the difference."""
    bundle = shutil.copytree(tiny("sdxl"), tmp_path / "bundle")
    write_engine(bundle, "tensorrt-rtx", smallest=SMALL, largest=LARGE)
    machine, manifest = put_in_place(monkeypatch, bundle), read_manifest(bundle)
    with open_engine(bundle, manifest, "unet", "onnxruntime", cache=False) as engine:
        machine.compute = lambda feed: engine.run(feed)["noise_pred"] * (1.01 if wrong else 1)
        done = cli("verify", bundle, "--json")
    rows = {row["name"]: row for row in json.loads(done.out)["parity"]}
    own = [name for name in rows if not name.startswith("tensorrt-rtx: ")]
    # no engine of the shallow part was built
    built = [f"tensorrt-rtx: {name}" for name in own if "cache interval" not in name]
    assert built == list(rows)[len(own) :]
    assert len(built) == len(own) - 1
    assert "latents, 6 steps 112x96" in own
    assert "the sampling run is at 112 x 96, which the built engines accept" in caplog.text
    assert all(rows[name]["value"] < 1e-4 for name in ("unet: noise_pred", "latents, 6 steps 112x96"))
    assert (rows["tensorrt-rtx: unet: noise_pred"]["value"] > 5e-3) == wrong
    assert done.status == (1 if wrong else 0)
    assert ("tensorrt-rtx: unet: noise_pred" in done.err) == wrong


def test_sizes_are_those_that_the_engines_take(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are limited by the engines of each graph, by both if two backends have one."""
    put_in_place(monkeypatch, bundle)
    manifest = read_manifest(bundle)
    write_engine(bundle, "tensorrt-rtx", smallest=SMALLEST, largest={**LARGEST, "height": 5})
    write_engine(bundle, "tensorrt", smallest={**SMALLEST, "width": 4})
    profiles = [backend.profiles for backend in usable_backends(bundle, manifest).values()]
    assert len(profiles) == 2
    feeds = graph_feeds(bundle, manifest, profiles)
    assert [feed["sample"].shape for feed in feeds["unet"]] == [(1, 4, 5, 6), (2, 4, 5, 6)]
    assert [feed["encoder_hidden_states"].shape[1] for feed in feeds["unet"]] == [7, 7]
    plain = graph_feeds(bundle, manifest)
    for folder in ("vae_decoder",):
        assert [{n: a.shape for n, a in feed.items()} for feed in feeds[folder]] == [
            {n: a.shape for n, a in feed.items()} for feed in plain[folder]
        ]
    run = fit_run(manifest, default_run(manifest), profiles)
    assert (run.height, run.width) == (40, 48)
    assert fit_run(manifest, default_run(manifest), []) == default_run(manifest)


def test_engines_that_cannot_run_here_are_left_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a GPU there is no warning; with a stale engine there is one."""
    put_in_place(monkeypatch, bundle)
    manifest = read_manifest(bundle)
    assert not usable_backends(bundle, manifest)
    write_engine(bundle, "tensorrt", version="1.0")
    write_engine(bundle, "tensorrt-rtx")
    assert list(usable_backends(bundle, manifest)) == ["tensorrt-rtx"]
    assert "the engines of tensorrt are not used" in caplog.text
    assert "version is 1.0, wanted 1.2.3" in caplog.text
    caplog.clear()
    monkeypatch.setattr("controlnext.engines.tensorrt.backend.find_gpu", lambda: None)
    assert not usable_backends(bundle, manifest)
    assert not caplog.text
