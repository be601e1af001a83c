"""Engines: what is refused before anything runs, and graphs that are optimized once."""

from __future__ import annotations

import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines import artifact_cache, open_engine, select_backend
from controlnext.engines.devices import device_index, device_kind
from controlnext.engines.onnxruntime.sessions import OrtEngine
from controlnext.engines.openvino.backend import OpenVinoBackend
from controlnext.errors import BundleError, InputError, MissingDependencyError, WorkError
from support.exports import list_anew
from support.fake_bundle import fake_denoiser, write_fake_bundle
from support.recipe import rand


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle")


def _feed(batch: int = 2, **changes: np.ndarray) -> dict[str, np.ndarray]:
    feed = {
        "sample": rand(0, batch, 4, 3, 5),
        "timestep": np.full(batch, 500, np.float32),
        "encoder_hidden_states": rand(1, batch, 7, 16),
        "text_embeds": rand(2, batch, 5),
        "time_ids": rand(3, batch, 6),
        "control_image": rand(4, 1, 3, 24, 40, kind="uniform"),
        "control_scale": np.full(batch, 0.5, np.float32),
    }
    return {**feed, **changes}


def _run(bundle: Path, folder: str = "unet", **options: bool) -> np.ndarray:
    with open_engine(bundle, read_manifest(bundle), folder, **options) as engine:
        return engine.run(_feed())["noise_pred"]


def _optimized(bundle: Path) -> Path:
    (folder,) = bundle.glob("engines/onnxruntime-*/unet")
    return folder


def test_engine_computes_what_the_graph_says(bundle: Path) -> None:
    np.testing.assert_allclose(_run(bundle), fake_denoiser(_feed()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": rand(0, 2, 4, 3, 5).astype(np.float64)}, "sample is float64"),
        ({"sample": rand(0, 2, 5, 3, 5)}, "expected float32 .batch, 4, height, width"),
        ({"control_image": rand(4, 2, 3, 24, 32)}, "control_image is"),
        ({"control_image": rand(4, 3, 3, 24, 40)}, "give 1 or the batch of the other inputs, 2"),
        ({"unknown": rand(0, 1)}, "unknown (inputs )?.'unknown'"),
    ],
)
def test_inputs_that_contradict_the_manifest_are_refused(
    bundle: Path, change: dict[str, np.ndarray], message: str
) -> None:
    with (
        open_engine(bundle, read_manifest(bundle), "unet", cache=False) as engine,
        pytest.raises(InputError, match=message),
    ):
        engine.run(_feed(**change))


def test_a_closed_engine_says_so(bundle: Path) -> None:
    with open_engine(bundle, read_manifest(bundle), "unet", cache=False) as engine:
        pass
    with pytest.raises(InputError, match="unet is closed"):
        engine.run(_feed())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend": "openvin"},
            "unknown backend 'openvin'; accepted: auto, tensorrt, tensorrt-rtx",
        ),
        ({"device": "gpu"}, "unknown device 'gpu'; accepted: auto, cpu, cuda, cuda:0"),
        (
            {"device": "cuda:0"},
            "no CUDA; set `device` to cpu, or run pip uninstall onnxruntime, then pip install",
        ),
    ],
)
def test_unknown_backends_and_devices_are_refused(
    arguments: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=message):
        select_backend(**arguments)


def test_names_of_devices() -> None:
    found = {name: device_index(name) for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:3")}
    assert found == {"auto": None, "cpu": None, "cuda": 0, "cuda:0": 0, "cuda:3": 3}
    assert device_kind("cuda") == device_kind("cuda:1") == "cuda"
    for name in ("cuda:", "cuda:-1", "CUDA", "cuda0", ""):
        with pytest.raises(InputError, match="accepted: auto, cpu, cuda, cuda:0"):
            device_index(name)


def test_missing_onnxruntime_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(OpenVinoBackend, "module", "a_library_that_is_not_there")
    monkeypatch.setattr("controlnext.engines.tensorrt.backend.find_gpu", lambda _index: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "controlnext\[cpu\]"'):
        select_backend()


def test_cuda_that_does_not_start(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for, it is an error; with device auto the CPU is taken, and its graphs are kept as such."""
    manifest = read_manifest(bundle)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    session = onnxruntime.InferenceSession

    def without_cuda(*args: object, **kwargs: object) -> onnxruntime.InferenceSession:
        return session(*args, **{**kwargs, "providers": ["CPUExecutionProvider"]})

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(WorkError, match="ONNX Runtime has cuda but cannot start it on cuda:0"):
        open_engine(bundle, manifest, "unet", device="cuda:0")
    with open_engine(bundle, manifest, "unet", device="auto") as engine:
        np.testing.assert_allclose(
            engine.run(_feed())["noise_pred"], fake_denoiser(_feed()), rtol=1e-5, atol=1e-6
        )
    assert "continuing without the GPU" in caplog.text
    kept = _optimized(bundle)
    monkeypatch.undo()
    open_engine(bundle, manifest, "unet", device="cpu").close()
    assert _optimized(bundle) == kept


def test_a_graph_that_the_bundle_has_not(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no graph image_encoder; it has text_encoder"):
        open_engine(bundle, read_manifest(bundle), "image_encoder")


@pytest.mark.parametrize("cached", [True, False])
def test_damaged_files_are_named_with_their_checksum(bundle: Path, cached: bool) -> None:
    manifest = read_manifest(bundle)
    path = bundle / "text_encoder" / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    checksum = manifest.files["text_encoder/model.onnx.data"].sha256
    with pytest.raises(BundleError, match=rf"model\.onnx\.data is damaged.*{checksum}"):
        open_engine(bundle, manifest, "text_encoder", cache=cached)
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"model\.onnx\.data has .* truncated"):
        open_engine(bundle, manifest, "text_encoder", cache=cached)
    path.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx\.data is missing"):
        open_engine(bundle, manifest, "text_encoder", cache=cached)
    assert not list(bundle.glob("engines/*/text_encoder"))


def test_a_graph_that_onnxruntime_refuses_is_one_line(bundle: Path) -> None:
    (bundle / "unet" / "model.onnx").write_bytes(b"no graph at all")
    list_anew(bundle)
    with pytest.raises(WorkError, match=r"ONNX Runtime cannot load .*model\.onnx") as caught:
        _run(bundle)
    assert "\n" not in str(caught.value)


def test_a_failure_while_running_is_one_line(bundle: Path) -> None:
    """An id beyond the vocabulary passes the check of types and shapes and fails in the graph."""
    with open_engine(bundle, read_manifest(bundle), "text_encoder") as engine:
        with pytest.raises(WorkError, match="ONNX Runtime failed in text_encoder") as caught:
            engine.run({"input_ids": np.full((1, 4), 999)})
        assert "\n" not in str(caught.value)


def test_the_optimized_graph_is_what_later_loads_read(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    first = _run(bundle)
    assert {path.name for path in _optimized(bundle).iterdir()} == {"model.onnx", "checksums.json"}
    (bundle / "unet" / "model.onnx").write_bytes(b"not read any more")
    with open_engine(bundle, manifest, "unet") as engine:
        np.testing.assert_array_equal(engine.run(_feed())["noise_pred"], first)
    with pytest.raises(BundleError):
        open_engine(bundle, manifest, "unet", cache=False)


@pytest.mark.export
@pytest.mark.parametrize("precision", ["", "_fp16"])
def test_the_optimized_graph_gives_the_same_bits(
    precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """On a real export, in float32 and float16, at a size that is not the traced one."""
    bundle = shutil.copytree(request.getfixturevalue(f"tiny_bundle{precision}"), tmp_path / "bundle")
    manifest = read_manifest(bundle)
    sizes = {"batch": 2, "control_batch": 1, "height": 8, "width": 6, "sequence": 77}
    specs = [tensor.spec() for tensor in manifest.graphs["unet"].inputs]
    feed = {spec.name: rand(i, *spec.shape_at(sizes)) for i, spec in enumerate(specs)}
    results = []
    for cached in (False, True, True):
        with open_engine(bundle, manifest, "unet", cache=cached) as engine:
            results.append(engine.run(feed)["noise_pred"])
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@pytest.mark.parametrize("cache", [True, False])
def test_only_a_step_lays_its_weights_out_anew(shapes_bundle: Path, tmp_path: Path, cache: bool) -> None:
    """Graphs that run once an image read their weights from the mapped file, without a copy."""
    bundle = shutil.copytree(shapes_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    packed = {}
    for folder in manifest.graphs:
        with open_engine(bundle, manifest, folder, device="cpu", cache=cache) as engine:
            assert isinstance(engine, OrtEngine)
            sessions = [engine._prologue, engine._step]
            packed[folder] = [_packs(session) for session in sessions if session is not None]
    assert packed == {folder: [False] for folder in manifest.graphs} | {"unet": [False, True]}


def _packs(session: onnxruntime.InferenceSession) -> bool:
    try:
        return session.get_session_options().get_session_config_entry("session.disable_prepacking") != "1"
    except RuntimeError:  # what was never set
        return True


@pytest.mark.parametrize("name", ["model.onnx", "checksums.json"])
def test_a_damaged_optimized_graph_is_made_again(
    bundle: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = _run(bundle)
    whole = (_optimized(bundle) / name).read_bytes()
    (_optimized(bundle) / name).write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(_run(bundle), first)
    assert "is damaged and will be made again" in caplog.text
    assert (_optimized(bundle) / name).read_bytes() == whole


def test_an_optimized_graph_that_cannot_be_loaded_is_left_out(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _run(bundle)
    folder = _optimized(bundle)
    with artifact_cache.store(folder) as made:
        (made / "model.onnx").write_bytes(b"whole, but no graph")
    np.testing.assert_array_equal(_run(bundle), first)
    assert "is not used" in caplog.text
    np.testing.assert_array_equal(_run(bundle), first)
    assert artifact_cache.is_intact(folder)


def test_where_nothing_can_be_written_it_works_without(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (bundle / "engines").write_text("a file where the folder would be")
    np.testing.assert_allclose(_run(bundle), fake_denoiser(_feed()), rtol=1e-5, atol=1e-6)
    assert "is not cached" in caplog.text


def test_several_at_once(bundle: Path) -> None:
    """All give the same, one optimized graph stays, and nothing else is left behind."""
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: _run(bundle), range(8)))
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    assert artifact_cache.is_intact(_optimized(bundle))
    assert [path.name for path in _optimized(bundle).parent.iterdir()] == ["unet"]


def test_another_processor_has_optimized_graphs_of_its_own(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(bundle)
    monkeypatch.setattr("controlnext.engines.onnxruntime.backend.describe_processor", lambda: "another")
    _run(bundle)
    assert len(list(bundle.glob("engines/onnxruntime-*/unet"))) == 2
