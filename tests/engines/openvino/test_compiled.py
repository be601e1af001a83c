"""How often OpenVINO compiles a graph: once a size, and once more when the number of rows differs there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines import Engine, open_engine
from controlnext.engines.openvino import compiled
from controlnext.engines.openvino.backend import OpenVinoBackend
from controlnext.evaluation.metrics import relative_l2
from support.fake_bundle import fake_denoiser, write_fake_bundle
from support.fake_unet import unet_feed
from support.feeds import make_feed
from support.openvino_here import needs_openvino
from support.recipe import rand

pytestmark = needs_openvino

FP32 = 2e-5
INT8 = 0.03
"""Sums in another order move some values to the next step of their grid. With amx_int8 the two models differ
by 0.016, and each by as much from the graph's literal meaning; with AVX2 alone by less than FP32."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shapes of ``sample`` of each model with that input which is compiled."""
    models: list[str] = []
    build = OpenVinoBackend._build

    def recorded(self: OpenVinoBackend, model: Any, computes: str = "") -> Any:
        models.extend(str(one.get_partial_shape()) for one in model.inputs if "sample" in one.get_names())
        return build(self, model, computes)

    monkeypatch.setattr(OpenVinoBackend, "_build", recorded)
    return models


@pytest.fixture
def engine(tmp_path: Path, built: list[str]) -> Iterator[Engine]:  # noqa: ARG001
    bundle = write_fake_bundle(tmp_path / "bundle")
    with open_engine(bundle, read_manifest(bundle), "unet", "openvino") as opened:
        yield opened


def _run(engine: Engine, rows: int, width: int = 5) -> None:
    feed = unet_feed(rows)
    feed["sample"] = rand(7, rows, 4, 3, width)
    feed["control_image"] = rand(8, 1, 3, 24, 8 * width, kind="uniform")
    found = engine.run(feed)["noise_pred"]
    np.testing.assert_allclose(found, fake_denoiser(feed), rtol=1e-5, atol=1e-5)


def test_one_model_a_size_takes_any_number_of_rows(engine: Engine, built: list[str]) -> None:
    """From the second number on; the same number again compiles nothing."""
    for rows in (2, 2, 2):
        _run(engine, rows)
    assert built == ["[2,4,3,5]"]
    for rows in (3, 1, 2, 7, 3):
        _run(engine, rows)
    assert built == ["[2,4,3,5]", "[?,4,3,5]"]


def test_a_control_of_one_row_and_one_of_all(engine: Engine, built: list[str]) -> None:
    """They are another set of rows, also where the other inputs have as many as before."""
    feed = unet_feed(2)
    for control in (feed["control_image"][:1], rand(8, 2, 3, 24, 40, kind="uniform")):
        given = {**feed, "control_image": control}
        np.testing.assert_allclose(
            engine.run(given)["noise_pred"], fake_denoiser(given), rtol=1e-5, atol=1e-5
        )
    assert built == ["[2,4,3,5]", "[?,4,3,5]"]


def test_models_of_the_latest_sizes_stay(engine: Engine, built: list[str]) -> None:
    """No more of them than the limit: each holds weights of its own."""
    for width in (5, 6, 5, 6, 7, 6, 5):
        _run(engine, 2, width)
        assert len(engine._step._compiled) <= compiled.MOST_SIZES == 2
    assert built == [f"[2,4,3,{width}]" for width in (5, 6, 7, 5)]


def test_what_does_not_fit_is_compiled_once_for_any_rows(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoBackend, "_fits", staticmethod(lambda _model: False))
    bundle = write_fake_bundle(tmp_path / "bundle")
    with open_engine(bundle, read_manifest(bundle), "unet", "openvino") as engine:
        for rows in (2, 3, 1):
            _run(engine, rows)
    assert built == ["[?,4,?,?]"]


def test_opening_reads_a_graph_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in bfloat16, which takes the graph apart."""
    from controlnext.engines.openvino.backend import OpenVinoBf16Backend

    monkeypatch.setattr(OpenVinoBf16Backend, "_multiplies", staticmethod(lambda: True))
    bundle = write_fake_bundle(tmp_path / "bundle")
    read: list[Path] = []
    read_model = OpenVinoBackend._read
    monkeypatch.setattr(
        OpenVinoBackend, "_read", lambda self, path: (read.append(path), read_model(self, path))[1]
    )
    for name in ("openvino", "openvino-bf16"):
        read.clear()
        open_engine(bundle, read_manifest(bundle), "unet", name).close()
        assert len(read) == 1


@pytest.mark.export
@pytest.mark.parametrize(
    ("variant", "precision", "limit"),
    [
        *((variant, "fp32", FP32) for variant in ("sd15", "sdxl", "sd3", "svd")),
        ("sdxl", "int8", INT8),
    ],
)
def test_a_request_has_its_results_however_the_graph_is_compiled(
    variant: str, precision: str, limit: float, tiny: Callable[..., Path], built: list[str]
) -> None:
    """For its number of rows, or for any behind a batch of others."""
    from controlnext.families import get_family

    bundle = tiny(variant, precision)
    manifest = read_manifest(bundle)
    denoiser = get_family(manifest.family).denoiser
    with open_engine(bundle, manifest, denoiser, "openvino", "cpu", cache=False) as engine:
        feed = make_feed(engine)
        fixed = engine.run(feed)["noise_pred"]
        # a control image of one row is that of all
        engine.run({name: a if len(a) == 1 else np.concatenate([a, a[:1]]) for name, a in feed.items()})
        assert built[-1].startswith("[?,")
        compilations = len(built)
        assert relative_l2(engine.run(feed)["noise_pred"], fixed) < limit
        assert len(built) == compilations
