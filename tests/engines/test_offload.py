"""One engine in memory at a time."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines import Backend, Engine, select_backend
from controlnext.engines.offload import OffloadBackend
from controlnext.errors import InputError
from controlnext.runtime import Pipeline
from controlnext.types import Feed
from support.fake_bundle import write_fake_bundle
from support.feeds import make_feed, split
from support.recipe import drawing

ARGUMENTS = {"prompt": "a red circle", "num_inference_steps": 3, "output_type": "np"}


class _Counted(Engine):
    """``engine``, entered in ``loaded`` while it is open."""

    def __init__(self, engine: Engine, manifest: Manifest, loaded: list[str], log: list[str]) -> None:
        super().__init__(manifest, engine.folder, engine.backend)
        self._engine, self._loaded, self._log = engine, loaded, log
        loaded.append(self.folder)
        log.append(self.folder)
        assert len(loaded) == 1

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        return self._engine._run(feed, replaced)

    def close(self) -> None:
        self._loaded.remove(self.folder)
        self._engine.close()


class _CountingBackend(Backend):
    """Fails where two engines are open at the same time; ``log``: what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.log: list[str] = []
        self._backend = select_backend("onnxruntime", "cpu")

    def open(self, bundle: Path, manifest: Manifest, folder: str, *, cache: bool = True) -> Engine:
        return _Counted(
            self._backend.open(bundle, manifest, folder, cache=cache), manifest, self.loaded, self.log
        )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", "sd15")


def test_pictures_are_the_same_bits(bundle: Path) -> None:
    picture = drawing(1, 64, 48)
    with Pipeline.load(bundle, device="cpu") as pipe:
        wanted = pipe(control_image=picture, **ARGUMENTS).images
    with Pipeline.load(bundle, device="cpu", offload=True) as pipe:
        for _ in range(2):
            np.testing.assert_array_equal(pipe(control_image=picture, **ARGUMENTS).images, wanted)
        # a preview between two steps takes the denoiser's place, which then gets everything again
        steps = pipe.stream(control_image=picture, **ARGUMENTS)
        for step in steps:
            pictures = pipe.decode(step.latents, "np")
        np.testing.assert_array_equal(pictures, wanted)
        assert "onnxruntime" in pipe.backend


def test_one_engine_is_loaded_at_a_time(bundle: Path) -> None:
    """And again when its turn comes; one that is needed twice in a row stays."""
    counting, manifest = _CountingBackend(), read_manifest(bundle)
    backend = OffloadBackend(counting)
    denoiser = backend.open(bundle, manifest, "unet")
    encoder = backend.open(bundle, manifest, "text_encoder")
    constants, changing = split(make_feed(denoiser))
    bound = denoiser.bind(constants)
    first = bound.run(changing)["noise_pred"]
    bound.run(changing)
    encoder.run({"input_ids": np.ones((1, 4), np.int64)})
    np.testing.assert_array_equal(bound.run(changing)["noise_pred"], first)
    assert counting.log == ["unet", "text_encoder", "unet", "text_encoder", "unet"]
    encoder.close()
    assert counting.loaded == ["unet"]
    denoiser.close()
    assert counting.loaded == []
    with pytest.raises(InputError, match="unet is closed"):
        bound.run(changing)


def test_several_threads_take_turns(bundle: Path) -> None:
    counting, manifest = _CountingBackend(), read_manifest(bundle)
    backend = OffloadBackend(counting)
    engines = [backend.open(bundle, manifest, "unet") for _ in range(3)]
    feeds = [make_feed(engine, 10 * number) for number, engine in enumerate(engines)]
    wanted = [engine.run(feed)["noise_pred"] for engine, feed in zip(engines, feeds, strict=True)]

    def run(number: int) -> np.ndarray:
        return engines[number % 3].run(feeds[number % 3])["noise_pred"]

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(run, range(12))):
            np.testing.assert_array_equal(found, wanted[number % 3])
