"""``auto`` on a processor where another backend than ONNX Runtime was measured to be faster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from controlnext import processor
from controlnext.bench.choices import Surroundings
from controlnext.bench.targets import all_targets
from controlnext.bundle.manifest import Quantization, write_manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines import measured, open_engine, registry
from controlnext.engines.onnxruntime import int8
from controlnext.engines.openvino.backend import OpenVinoBackend
from controlnext.errors import WorkError
from controlnext.runtime import Pipeline
from controlnext.types import Precision
from support.cli import Cli
from support.fake_bundle import write_fake_bundle
from support.openvino_here import needs_openvino
from support.recipe import drawing, rand

AMX = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that says that its denoiser is int8, as is the whole; other graphs are float32."""
    # a form that bundles without files of their own for it have
    monkeypatch.setattr(int8, "int8_form", lambda: int8.UINT8_INT8)
    directory = write_fake_bundle(tmp_path / "bundle")
    manifest = read_manifest(directory)
    unet = msgspec.structs.replace(
        manifest.graphs["unet"],
        precision=Precision.INT8,
        compute=Precision.FP32,
        quantization=Quantization({}, {}, 0.0, 0.0, 1),
    )
    graphs = {**manifest.graphs, "unet": unet}
    write_manifest(directory, msgspec.structs.replace(manifest, graphs=graphs, precision=Precision.INT8))
    return directory


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "instruction_sets", lambda: AMX)


def _backend(bundle: Path, graph_name: str = "unet", **options: str) -> str:
    with open_engine(bundle, read_manifest(bundle), graph_name, cache=False, **options) as engine:
        return engine.backend.partition(",")[0]


def test_every_row_keeps_the_rule() -> None:
    """At most 0.9 of the time, by a backend that ``auto`` may take."""
    assert measured.LARGEST_SHARE == 0.9
    for row in measured.FASTER:
        assert row.share <= measured.LARGEST_SHARE
        assert row.instructions
        assert not registry.BACKENDS[row.backend].rounds_to


@needs_openvino
@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("offload", [False, True])
def test_the_faster_backend_is_taken_for_its_graphs_alone(
    bundle: Path, offload: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Pipeline.load(bundle, device="cpu", cache=False, offload=offload) as pipe:
        assert pipe.backend == "openvino on cpu"
        pipe.decode(rand(0, 1, 4, 3, 5))
        assert pipe.bundle.backends == {"unet": "openvino on cpu", "vae_decoder": "onnxruntime on cpu"}
    assert "unet runs by openvino on cpu" in caplog.text
    assert _backend(bundle, backend="onnxruntime") == "onnxruntime on cpu"
    assert _backend(bundle, provider="cpu") == "onnxruntime on cpu"


@pytest.mark.parametrize(
    ("sets", "precision", "installed"),
    [(AMX - {"amx_int8"}, "int8", True), (AMX, "fp32", True), (AMX, "fp16", True), (AMX, "int8", False)],
)
def test_everything_else_stays_with_onnxruntime(
    sets: frozenset[str],
    precision: str,
    installed: bool,
    tmp_path: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other processors, other precisions, and where the faster library is not installed."""
    monkeypatch.setattr(processor, "instruction_sets", lambda: sets)
    monkeypatch.setattr(OpenVinoBackend, "available", lambda: installed)
    assert measured.faster_backend(Precision(precision)) is None
    if precision == "fp32":
        bundle = write_fake_bundle(tmp_path / "fp32")
    if precision != "fp16":
        assert _backend(bundle, device="cpu") == "onnxruntime on cpu"


@pytest.mark.usefixtures("amx")
def test_one_that_does_not_work_is_left_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning, as a built engine is."""

    def fail(*_given: object, **_named: object) -> None:
        raise WorkError("OpenVINO cannot load it")

    monkeypatch.setattr(OpenVinoBackend, "available", lambda: True)
    monkeypatch.setattr(OpenVinoBackend, "__init__", fail)
    assert _backend(bundle, device="cpu") == "onnxruntime on cpu"
    assert "continuing without the openvino engine of unet: OpenVINO cannot load it" in caplog.text


@needs_openvino
@pytest.mark.usefixtures("amx")
def test_commands_say_what_runs(bundle: Path, tmp_path: Path, cli: Cli) -> None:
    """And the benchmark has each backend once."""
    drawing(1, 40, 24).save(tmp_path / "outline.png")
    asked = ["run", bundle, "--prompt", "a", "--control-image", tmp_path / "outline.png", "--steps", 1]
    done = cli(*asked, "--output", tmp_path / "image.png", "--device", "cpu", "--json")
    assert json.loads(done.out)["backend"] == "openvino on cpu"
    assert "On this processor auto runs int8 graphs by openvino." in cli("inspect", bundle).out
    targets = all_targets([bundle], Surroundings(tmp_path, "cpu", gpu=False))
    names = [one.name for one in targets if one.runner == "engine" and "," in one.name]
    assert names == ["engine int8, ONNX Runtime", "engine int8, OpenVINO bfloat16"]


@needs_openvino
@pytest.mark.export
@pytest.mark.usefixtures("amx")
def test_verify_compares_what_auto_takes(tiny: Callable[..., Path], cli: Cli) -> None:
    """Besides ONNX Runtime, and once where it is asked for too; nothing for a float32 bundle."""
    done = cli("verify", tiny("sd15", "int8"), "--steps", 2, "--json", "--backend", "openvino")
    names = [row["name"] for row in json.loads(done.out)["parity"]]
    own = [name for name in names if not name.startswith("openvino: ")]
    assert names == [*own, *(f"openvino: {name}" for name in own)]
    assert done.status == 0, done.err
    done = cli("verify", tiny("sd15"), "--steps", 1, "--json")
    assert not [row for row in json.loads(done.out)["parity"] if ": unet" in row["name"]]
