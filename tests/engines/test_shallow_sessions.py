"""Full and shallow steps of ONNX Runtime's engines: on a device with its own memory, and one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from controlnext.bundle.format import MODEL, SHALLOW
from controlnext.bundle.reader import read_manifest
from controlnext.engines.onnxruntime.sessions import DeviceEngine
from controlnext.engines.steps import StepKind
from controlnext.errors import InputError
from controlnext.runtime import Pipeline
from support.fake_bundle import CACHED, fake_denoiser, write_fake_bundle
from support.fake_unet import unet_feed
from support.image_calls import arguments
from support.recipe import rand


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("shallow") / "bundle", shallow=True)


def test_features_are_copied_to_a_device_once_a_full_step(bundle: Path) -> None:
    """As all that stays is; each step gives what the graph computes."""
    placed: list[tuple[int, ...]] = []

    def place(array: np.ndarray, kind: str, index: int) -> Any:
        placed.append(array.shape)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, kind, index)

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(bundle / "unet" / name)

    feed = unet_feed()
    changing = {name: feed.pop(name) for name in ("sample", "timestep")}
    engine = DeviceEngine(
        [session(MODEL)], read_manifest(bundle), "unet", "", place, ("cpu", 0), lambda: session(SHALLOW)
    )
    with engine:
        bound = engine.bind(feed)
        for cycle in range(2):
            changing["sample"] = rand(cycle, *changing["sample"].shape)
            full = bound.run(changing, StepKind.FULL)
            features = {CACHED: full.pop(CACHED)}
            for step in range(3):
                changing["timestep"] = np.full(2, 100 * step, np.float32)
                found = bound.run(changing, StepKind.SHALLOW, features)["noise_pred"]
                wanted = fake_denoiser({**feed, "timestep": changing["timestep"], **features})
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    # by both sessions what stays; latents and timestep by full steps, the timestep by shallow ones
    assert len(placed) == 2 * len(feed) + 2 * 2 + 6 + 2


def test_with_one_engine_in_memory_at_a_time_results_are_the_same(bundle: Path) -> None:
    call = arguments(cache_interval=2, num_inference_steps=5)
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        wanted = pipe(**call).latents
    with Pipeline.load(bundle, device="cpu", cache=False, offload=True) as pipe:
        for _again in range(2):
            np.testing.assert_array_equal(pipe(**call).latents, wanted)


def test_a_closed_engine_runs_no_shallow_step(bundle: Path) -> None:
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        engine = pipe.bundle.engine("unet")
        engine.open_shallow()
    with pytest.raises(InputError, match="is closed; open it again"):
        engine.open_shallow()
