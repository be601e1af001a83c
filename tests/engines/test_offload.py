"""One engine in memory at a time."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import onnxruntime
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
        super().__init__(manifest, engine.graph_name, engine.backend)
        self._engine, self._loaded, self._log = engine, loaded, log
        loaded.append(self.graph_name)
        log.append(self.graph_name)
        assert len(loaded) == 1

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        return self._engine._run(feed, replaced)

    def _close(self) -> None:
        self._loaded.remove(self.graph_name)
        self._engine.close()


class _CountingBackend(Backend):
    """Fails where two engines are open at the same time; ``log``: what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.log: list[str] = []
        self._backend = select_backend("onnxruntime", "cpu")

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:
        return _Counted(
            self._backend.open(bundle, manifest, graph_name, cache=cache), manifest, self.loaded, self.log
        )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", "sd15")


def test_images_are_the_same_bits(bundle: Path) -> None:
    image = drawing(1, 64, 48)
    with Pipeline.load(bundle, device="cpu") as pipe:
        wanted = pipe(control_image=image, **ARGUMENTS).images
    with Pipeline.load(bundle, device="cpu", offload=True) as pipe:
        for _ in range(2):
            np.testing.assert_array_equal(pipe(control_image=image, **ARGUMENTS).images, wanted)
        # a preview between two steps takes the denoiser's place, which then gets everything again
        steps = pipe.stream(control_image=image, **ARGUMENTS)
        for step in steps:
            images = pipe.decode(step.latents, "np")
        np.testing.assert_array_equal(images, wanted)
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


def test_an_engine_is_closed_after_the_run_of_another_thread(bundle: Path) -> None:
    """Its memory is not released under a run; runs that come later are refused."""
    engine = select_backend("onnxruntime", "cpu").open(bundle, read_manifest(bundle), "unet")
    feed = make_feed(engine)
    running, may_end = Event(), Event()
    inner = engine._run

    def slow(feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        running.set()
        assert may_end.wait(30)
        return inner(feed, replaced)

    engine._run = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(engine.run, feed)
        assert running.wait(30)
        closed = pool.submit(engine.close)
        with pytest.raises(TimeoutError):
            closed.result(timeout=0.1)
        may_end.set()
        assert run.result(30).keys() == {"noise_pred"}
        closed.result(30)
    with pytest.raises(InputError, match="unet is closed"):
        engine.run(feed)


def test_threads_open_engines_of_one_backend_while_its_gpu_does_not_start(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All fall back to the processor, whichever thread notices first."""
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    session = onnxruntime.InferenceSession

    def on_the_processor(path: str, options: object, **_: object) -> onnxruntime.InferenceSession:
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_processor)
    backend, manifest = select_backend("onnxruntime"), read_manifest(bundle)
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: backend.open(bundle, manifest, "unet").backend, range(8)))
    assert set(opened) == {"onnxruntime on cpu"}
