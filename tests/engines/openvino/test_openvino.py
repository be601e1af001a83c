"""The backends of OpenVINO: what they compute of small graphs, what they refuse, what they leave alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext import processor
from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine, select_backend
from controlnext.errors import BundleError, InputError, MissingDependencyError, WorkError
from controlnext.runtime import Pipeline
from support.cli import Cli, assert_refused
from support.exports import list_anew
from support.fake_bundle import fake_denoiser, write_fake_bundle
from support.fake_unet import unet_feed
from support.openvino_here import needs_bf16, needs_openvino
from support.recipe import drawing, rand

pytestmark = needs_openvino


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle")


def _open(bundle: Path, graph_name: str = "unet", backend: str = "openvino", **options: Any) -> Any:
    return open_engine(bundle, read_manifest(bundle), graph_name, backend, **options)


@pytest.mark.parametrize(
    ("backend", "tolerance"),
    [("openvino", 1e-5), pytest.param("openvino-bf16", 3e-2, marks=needs_bf16)],
)
def test_it_computes_what_the_graph_says(bundle: Path, backend: str, tolerance: float) -> None:
    feed = unet_feed()
    with _open(bundle, backend=backend) as engine:
        assert engine.backend == f"{backend} on cpu"
        found = engine.run(feed)["noise_pred"]
    np.testing.assert_allclose(found, fake_denoiser(feed), rtol=tolerance, atol=tolerance)


def test_results_of_a_run_stay_as_they_are(bundle: Path) -> None:
    """Also after the next run, which uses the same memory of the library."""
    feed = unet_feed()
    with _open(bundle) as engine:
        first = engine.run(feed)["noise_pred"]
        kept = first.copy()
        engine.run({**feed, "sample": rand(77, *feed["sample"].shape)})
    np.testing.assert_array_equal(first, kept)


def test_a_closed_engine_says_so(bundle: Path) -> None:
    with _open(bundle) as engine:
        pass
    with pytest.raises(InputError, match="unet is closed"):
        engine.run(unet_feed())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:0"}, "openvino does not run on device cuda:0; set `device` to cpu"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"threads": 0}, "threads is 0; it must be an integer from 1"),
        ({"provider": "cpu"}, "provider cpu is not supported by backend openvino"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_backend("openvino", **options)


@pytest.mark.parametrize("backend", ["openvino", "openvino-bf16"])
def test_without_the_library_the_error_names_the_pip_command(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from controlnext.engines.openvino import library

    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(library, "core", library.core.__wrapped__)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "controlnext\[openvino\]"'):
        select_backend(backend)


def test_bfloat16_is_refused_where_the_processor_does_not_multiply_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """And the benchmark has no target of it."""
    from controlnext.bench.choices import Surroundings
    from controlnext.bench.targets import all_targets

    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"avx2", "avx512f"}))
    drawing(1, 48, 64).save(tmp_path / "control.png")
    asked = ["run", bundle, "--prompt", "a", "--control-image", tmp_path / "control.png"]
    assert_refused(
        cli(*asked, "--backend", "openvino-bf16"),
        "does not multiply bfloat16: it has none of amx_bf16, avx512_bf16; set --backend to openvino",
    )
    names = {one.name for one in all_targets([bundle], Surroundings(tmp_path, "cpu", gpu=False))}
    assert "engine fp32, OpenVINO" in names
    assert "engine fp32, OpenVINO bfloat16" not in names


def test_auto_takes_bfloat16_never(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would change the results; float32 stands in where ONNX Runtime is not installed."""
    monkeypatch.setattr("controlnext.engines.onnxruntime.backend.OrtBackend.module", "not_there")
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        assert pipe.backend == "openvino on cpu"
    monkeypatch.setattr("controlnext.engines.openvino.backend.OpenVinoBackend.rounds_to", "bfloat16")
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        assert pipe.backend == "onnxruntime on cpu"


def test_a_graph_that_the_bundle_has_not_and_damaged_files(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no graph image_encoder; it has text_encoder"):
        _open(bundle, "image_encoder")
    path = bundle / "text_encoder" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated"):
        _open(bundle, "text_encoder")


def test_errors_of_the_library_are_one_line(bundle: Path) -> None:
    (bundle / "unet" / "model.onnx").write_bytes(b"no graph at all")
    list_anew(bundle)
    with pytest.raises(WorkError, match=r"OpenVINO cannot load .*model\.onnx: ") as caught:
        _open(bundle)
    assert "\n" not in str(caught.value)


def test_nothing_is_told_over_the_network(tmp_path: Path) -> None:
    """The library's package for that is not loaded, and no file of it appears at home."""
    script = (
        "import sys; from controlnext.engines import select_backend; select_backend('openvino');"
        "print(*(name for name in sys.modules if name.startswith('openvino_telemetry')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert not done.stdout.strip()
    assert not list(tmp_path.iterdir())
