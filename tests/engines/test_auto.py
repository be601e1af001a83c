"""``backend="auto"``: a built engine where it works, else ONNX Runtime, and which it was."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from controlnext.bundle.format import MODEL, PROLOGUE, STEP
from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine, select_backend
from controlnext.engines.onnxruntime import int8
from controlnext.engines.openvino.backend import OpenVinoBackend
from controlnext.errors import BundleError, InputError, MissingDependencyError
from controlnext.runtime import Pipeline
from support.cli import Cli, assert_refused
from support.fake_bundle import fake_denoiser, write_fake_bundle
from support.recipe import drawing, rand
from support.stand_in_gpu import Machine, put_in_place, write_engine


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle")


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return put_in_place(monkeypatch, bundle)


def _backend(bundle: Path, **options: str) -> str:
    """Return the backend of the denoiser after checking its output."""
    feed = {
        "sample": rand(0, 2, 4, 3, 5),
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": rand(1, 2, 7, 16),
        "text_embeds": rand(2, 2, 5),
        "time_ids": rand(3, 2, 6),
        "control_image": rand(4, 1, 3, 24, 40, kind="uniform"),
        "control_scale": np.full(2, 0.5, np.float32),
    }
    with open_engine(bundle, read_manifest(bundle), "unet", cache=False, **options) as engine:
        np.testing.assert_allclose(engine.run(feed)["noise_pred"], fake_denoiser(feed), rtol=1e-5, atol=1e-6)
        return engine.backend


@pytest.mark.usefixtures("machine")
def test_a_built_engine_is_taken(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That of TensorRT goes before that of TensorRT-RTX; other graphs run by ONNX Runtime."""
    caplog.set_level(logging.INFO)
    assert _backend(bundle) == "onnxruntime on cpu"
    write_engine(bundle, "tensorrt-rtx")
    assert _backend(bundle) == "tensorrt-rtx on cuda:0 (NVIDIA RTX 4000)"
    write_engine(bundle, "tensorrt")
    assert _backend(bundle) == "tensorrt on cuda:0 (NVIDIA RTX 4000)"
    assert "unet runs by tensorrt on cuda:0 (NVIDIA RTX 4000)" in caplog.text
    with Pipeline.load(bundle, cache=False) as pipe:
        assert pipe.backend == "tensorrt on cuda:0 (NVIDIA RTX 4000)"
        pipe.decode(rand(0, 1, 4, 3, 5))
        assert pipe.bundle.backends == {"unet": pipe.backend, "vae_decoder": "onnxruntime on cpu"}


@pytest.mark.usefixtures("machine")
def test_one_that_does_not_work_is_left_out(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next best is taken, and a warning says why."""
    place = write_engine(bundle, "tensorrt", version="1.0")
    write_engine(bundle, "tensorrt-rtx")
    assert _backend(bundle).startswith("tensorrt-rtx on")
    assert "continuing without the tensorrt engine of unet" in caplog.text
    assert "version is 1.0, wanted 1.2.3" in caplog.text
    (place.parent.parent / "tensorrt-rtx-portable" / "unet" / "model.engine").write_bytes(b"damaged")
    assert _backend(bundle) == "onnxruntime on cpu"
    with pytest.raises(BundleError, match="is damaged"):
        _backend(bundle, backend="tensorrt-rtx")


def test_without_its_gpu_an_engine_is_passed_over_silently(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on the machine that built it; so it is where the processor is asked for."""
    machine = put_in_place(monkeypatch, bundle)
    write_engine(bundle, "tensorrt-rtx")
    assert _backend(bundle, device="cpu") == "onnxruntime on cpu"
    monkeypatch.setattr("controlnext.engines.tensorrt.backend.find_gpu", lambda _index: None)
    assert _backend(bundle) == "onnxruntime on cpu"
    assert not caplog.text
    assert not machine.cudas


def test_nothing_of_tensorrt_is_loaded_for_a_bundle_without_engines(bundle: Path) -> None:
    """In a fresh interpreter, although the library is installed."""
    code = (
        "import sys; from pathlib import Path; from controlnext.runtime import Pipeline;"
        f"pipe = Pipeline.load(Path({str(bundle)!r})); pipe.backend;"
        "print([name for name in ('tensorrt', 'tensorrt_rtx', 'polygraphy', 'cuda') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_built_engines_need_no_onnxruntime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But graphs without an engine do, and everything does where there is no GPU."""
    put_in_place(monkeypatch, bundle)
    write_engine(bundle, "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(OpenVinoBackend, "module", "a_library_that_is_not_there")
    assert _backend(bundle).startswith("tensorrt-rtx on")
    with Pipeline.load(bundle) as pipe, pytest.raises(MissingDependencyError, match=r"controlnext\[cpu\]"):
        pipe.decode(rand(0, 1, 4, 3, 5))
    monkeypatch.setattr("controlnext.engines.tensorrt.backend.find_gpu", lambda _index: None)
    with pytest.raises(MissingDependencyError, match=r"controlnext\[cpu\]"):
        Pipeline.load(bundle)


@pytest.mark.usefixtures("machine")
def test_the_command_line_says_what_ran(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    write_engine(bundle, "tensorrt-rtx")
    drawing(1, 40, 24).save(tmp_path / "outline.png")
    asked = ["run", bundle, "--prompt", "a", "--control-image", tmp_path / "outline.png", "--steps", 1]
    asked += ["--output", tmp_path / "image.png"]
    done = cli(*asked, "--json", "--device", "cpu")
    assert json.loads(done.out)["backend"] == "onnxruntime on cpu"
    assert_refused(cli(*asked, "--backend", "tensorrt"), "no tensorrt engine of", "controlnext build")
    assert_refused(cli(*asked, "--backend", "openvin"), "unknown backend 'openvin'; accepted: auto")


def _stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[tuple[str, dict[str, object]]]]]:
    """An ONNX Runtime with every provider, whose sessions do nothing; the file and providers of each."""
    everything = [
        "NvTensorRTRTXExecutionProvider",
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    asked = []

    class Session:
        def __init__(
            self, path: str, *_args: object, providers: list[tuple[str, dict[str, object]]], **_: object
        ) -> None:
            asked.append((Path(path).name, providers))

        def get_providers(self) -> list[str]:
            return [name for name, _ in asked[-1][1]]

        def get_inputs(self) -> list[object]:
            return []

        def get_outputs(self) -> list[object]:
            return []

        def io_binding(self) -> None:
            return None

    monkeypatch.setattr(int8, "int8_form", lambda: int8.UINT8_INT8)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ({}, "CUDAExecutionProvider"),
        ({"device": "cpu"}, "CPUExecutionProvider"),
        ({"provider": "cpu"}, "CPUExecutionProvider"),
        ({"device": "cuda:1"}, "CUDAExecutionProvider"),
        ({"provider": "tensorrt"}, "TensorrtExecutionProvider"),
        ({"device": "cuda:1", "provider": "tensorrt-rtx"}, "NvTensorRTRTXExecutionProvider"),
    ],
)
def test_providers_of_onnxruntime(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str], chosen: str
) -> None:
    """Check the first provider of a session and its GPU; the CPU is always the last provider."""
    asked, manifest = _stand_in(monkeypatch), read_manifest(bundle)
    with select_backend("onnxruntime", **arguments).open(bundle, manifest, "unet", cache=False) as engine:
        ((_, providers),) = asked
        assert providers[0][0] == chosen
        assert providers[-1] == ("CPUExecutionProvider", {})
        for _, options in providers[:-1]:
            assert options["device_id"] == int(arguments.get("device", "cuda:0")[-1])
        on_gpu = chosen != "CPUExecutionProvider"
        assert engine.backend.startswith("onnxruntime")
        assert ("cuda:" in engine.backend) == on_gpu


@pytest.mark.parametrize(
    ("provider", "precision", "files"),
    [
        ("cpu", "fp32", [PROLOGUE, STEP]),
        ("cpu", "int8", [PROLOGUE, STEP]),
        ("cuda", "fp16", [PROLOGUE, STEP]),
        ("cuda", "int8", [MODEL]),
        ("tensorrt", "fp32", [MODEL]),
        ("tensorrt-rtx", "int8", [MODEL]),
    ],
)
def test_what_a_provider_reads_of_a_denoiser(
    provider: str,
    precision: str,
    files: list[str],
    tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime's own form where it has all the operators, else the standard graph."""
    bundle = tiny("sd15", precision)
    asked, backend = _stand_in(monkeypatch), select_backend("onnxruntime", provider=provider)
    backend.open(bundle, read_manifest(bundle), "unet", cache=False)
    assert [name for name, _ in asked] == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"provider": "openvino"}, "unknown provider 'openvino'; accepted: auto, cpu, cuda, tensorrt, tens"),
        ({"provider": "tensorrt"}, "provider tensorrt was requested, but this ONNX Runtime has cpu, cuda"),
        ({"provider": "cpu", "device": "cuda:0"}, "provider cpu does not run on device cuda:0"),
        ({"provider": "cuda", "device": "cpu"}, "provider cuda does not run on device cpu"),
        (
            {"provider": "cuda", "backend": "tensorrt-rtx"},
            "provider cuda is not supported by backend tensorrt-rtx",
        ),
    ],
)
def test_providers_that_are_refused(
    arguments: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    with pytest.raises(InputError, match=message):
        select_backend(**arguments)
