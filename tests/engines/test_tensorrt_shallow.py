"""The step cache with built engines, on a stand-in for the GPU: the shallow part is a second engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controlnext.bundle.manifest import shallow_name
from controlnext.bundle.reader import read_manifest
from controlnext.engines.steps import StepKind
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.profile import choose_ranges, make_profile
from controlnext.errors import EngineError
from controlnext.runtime import Pipeline
from support.fake_bundle import CACHED, LENGTH, write_fake_bundle
from support.fake_unet import open_unet, unet_feed
from support.image_calls import arguments
from support.recipe import rand
from support.stand_in_gpu import LARGEST, SMALLEST, Machine, put_in_place, write_engine

SEQUENCE = {"sequence": LENGTH}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", shallow=True)


def _build(bundle: Path, backend: str, *graph_names: str) -> None:
    for graph_name in graph_names:
        write_engine(bundle, backend, graph_name, SMALLEST | SEQUENCE, LARGEST | SEQUENCE)


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return put_in_place(monkeypatch, bundle)


@pytest.mark.parametrize("backend", list(FLAVORS))
@pytest.mark.usefixtures("machine")
def test_a_run_gives_what_onnxruntime_gives(bundle: Path, backend: str) -> None:
    call = arguments(cache_interval=3, num_inference_steps=8, num_images_per_prompt=3)
    with Pipeline.load(bundle, "onnxruntime", cache=False) as pipe:
        wanted = pipe(**call).latents
    _build(bundle, backend, "unet", shallow_name("unet"))
    with Pipeline.load(bundle, cache=False) as pipe:
        assert pipe.backend.startswith(f"{backend} ")
        # six rows, of which the engine takes four
        np.testing.assert_allclose(pipe(**call).latents, wanted, rtol=1e-5, atol=1e-5)


def test_features_are_sent_once_a_full_step(bundle: Path, machine: Machine) -> None:
    _build(bundle, "tensorrt", "unet", shallow_name("unet"))
    feed = unet_feed()
    feed["encoder_hidden_states"] = rand(1, 2, LENGTH, feed["encoder_hidden_states"].shape[-1])
    changing = {name: feed.pop(name) for name in ("sample", "timestep")}
    with open_unet(bundle, "tensorrt") as engine:
        bound = engine.bind(feed)
        for _cycle in range(2):
            full = bound.run(changing, StepKind.FULL)
            features = {CACHED: full.pop(CACHED)}
            for _step in range(3):
                shallow = bound.run(changing, StepKind.SHALLOW, features)
                # at the same timestep and latents nothing changes
                np.testing.assert_array_equal(shallow["noise_pred"], full["noise_pred"])
    whole, part = machine.cudas
    assert whole.counts["upload"] == len(feed) + 2 * len(changing)
    # the shallow part reads no latents
    assert part.counts["upload"] == len(feed) + 6 * (len(changing) - 1) + 2


@pytest.mark.usefixtures("machine")
def test_without_an_engine_of_the_shallow_part_it_is_refused(bundle: Path) -> None:
    """With the command that builds one; the plain run goes on."""
    _build(bundle, "tensorrt", "unet")
    with (
        Pipeline.load(bundle, "tensorrt", cache=False) as pipe,
        pytest.raises(EngineError, match=r"unet\.shallow"),
    ):
        pipe.bundle.engine("unet").open_shallow()


def test_its_engine_is_built_for_the_sizes_of_the_whole(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    ranges = choose_ranges(manifest, {})
    whole, part = (make_profile(manifest, name, ranges) for name in ("unet", shallow_name("unet")))
    assert part.pop(CACHED) == whole["sample"]
    assert part == {name: whole[name] for name in part}
