"""LoRAs as inputs of engines: none by default, what built engines take in place of none, rows and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.profile import choose_ranges, make_profile, parse_range
from controlnext.errors import InputError
from controlnext.tensor_spec import LORA_DOWN, LORA_UP
from support.fake_bundle import LORA_LAYERS, fake_denoiser, write_fake_bundle
from support.fake_unet import open_unet, unet_feed
from support.recipe import rand
from support.stand_in_gpu import put_in_place, write_engine

NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
"""Limits of float32 sums in another order."""
COLUMNS = LORA_LAYERS[-1].down[1], LORA_LAYERS[-1].up[1]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", text_encoders=False, lora_rank=4)


def matrices(rows: int, rank: int) -> dict[str, np.ndarray]:
    names = zip((LORA_DOWN, LORA_UP), COLUMNS, strict=True)
    return {name: rand(seed, rows, rank, columns) for seed, (name, columns) in enumerate(names)}


def test_without_inputs_for_them_there_are_none(bundle: Path) -> None:
    feed = unet_feed()
    with open_unet(bundle, "onnxruntime") as engine:
        bare = engine.run(feed)["noise_pred"]
        for given in (matrices(1, 0), {name: 0 * array for name, array in matrices(1, 2).items()}):
            np.testing.assert_allclose(engine.run({**feed, **given})["noise_pred"], bare, **NEAR)
        for rows, rank in ((1, 3), (2, 1)):
            given = {**feed, **matrices(rows, rank)}
            np.testing.assert_allclose(engine.run(given)["noise_pred"], fake_denoiser(given), **NEAR)


def test_rows_that_are_neither_one_nor_the_batch_are_refused(bundle: Path) -> None:
    with (
        open_unet(bundle, "onnxruntime") as engine,
        pytest.raises(InputError, match="lora_down has batch 3; give 1 or the batch of the other inputs, 2"),
    ):
        engine.run({**unet_feed(), **matrices(3, 2)})


@pytest.mark.parametrize("backend", FLAVORS)
def test_a_built_engine_gets_zeros_in_place_of_none(
    bundle: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engine(bundle, backend)
    put_in_place(monkeypatch, bundle)
    zeros = {name: 0 * array for name, array in matrices(1, 1).items()}
    with open_unet(bundle, backend) as engine:
        assert engine.least_rank == 1
        for given in ({}, matrices(1, 0), zeros):
            wanted = fake_denoiser({**unet_feed(), **zeros}).astype(np.float32)
            np.testing.assert_array_equal(engine.run({**unet_feed(), **given})["noise_pred"], wanted)
        given = {**unet_feed(), **matrices(2, 3)}
        np.testing.assert_allclose(engine.run(given)["noise_pred"], fake_denoiser(given), **NEAR)
        with pytest.raises(InputError, match="lora_down has shape"):
            engine.run({**unet_feed(), **matrices(1, 5)})


def test_engines_are_built_for_every_rank_from_one(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    ranges = choose_ranges(manifest, {"batch": parse_range("batch", "1:2:3")})
    profile = make_profile(manifest, "unet", ranges)
    assert profile[LORA_DOWN] == [[1, 1, COLUMNS[0]], [1, 4, COLUMNS[0]], [6, 4, COLUMNS[0]]]
    assert profile[LORA_UP] == [[1, 1, COLUMNS[1]], [1, 4, COLUMNS[1]], [6, 4, COLUMNS[1]]]
