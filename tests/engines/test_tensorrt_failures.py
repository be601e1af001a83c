"""Engines of the TensorRTs that cannot be opened or run, and the reasons that errors give."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine, select_backend
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.errors import BundleError, InputError, MissingDependencyError, WorkError
from support.fake_bundle import write_fake_bundle
from support.fake_unet import check_unet, open_unet, unet_feed
from support.host_cuda import HostCuda
from support.stand_in_gpu import HARDWARE, Machine, put_in_place, write_engine

BACKENDS = list(FLAVORS)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", text_encoders=False)


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for backend in BACKENDS:
        write_engine(bundle, backend)
    return put_in_place(monkeypatch, bundle)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("load", r"TensorRT cannot load .*model\.engine: the magic tag does not match"),
        ("start", r"TensorRT cannot start .*model\.engine: it gives no reason"),
    ],
)
def test_an_engine_that_the_library_refuses(bundle: Path, machine: Machine, what: str, message: str) -> None:
    machine.fails_to = what
    with pytest.raises(WorkError, match=message):
        open_unet(bundle, "tensorrt")
    assert machine.cuda.closed


def test_a_failure_while_running(bundle: Path, machine: Machine) -> None:
    """With the library's reason; the next run sends everything again."""
    feed = unet_feed()
    with open_unet(bundle, "tensorrt-rtx") as engine:
        bound = engine.bind(feed)
        bound.run({})
        machine.fails_to = "run"
        with pytest.raises(WorkError, match=r"TensorRT-RTX cannot run .*: misaligned address$"):
            bound.run({})
        machine.fails_to = ""
        before = machine.cuda.counts["upload"]
        bound.run({})
        assert machine.cuda.counts["upload"] == before + len(feed)


def test_weights_that_were_left_out_come_from_the_bundle(bundle: Path, machine: Machine) -> None:
    write_engine(bundle, "tensorrt-rtx", options={"strip_weights": True})
    with open_unet(bundle, "tensorrt-rtx") as engine:
        check_unet(engine, unet_feed())
    assert machine.refitted == [str(bundle / "unet" / "model.onnx")]
    machine.fails_to = "refit"
    with pytest.raises(WorkError, match=r"cannot put the weights into .*: a weight is missing"):
        open_unet(bundle, "tensorrt-rtx")
    (bundle / "unet" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"unet/model\.onnx has 7 bytes"):
        open_unet(bundle, "tensorrt-rtx")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_that_is_not_there_or_stale(bundle: Path, machine: Machine, backend: str) -> None:
    """Nothing of it is loaded; the message names the command."""
    write_engine(bundle, backend, version="1.0")
    with pytest.raises(
        BundleError, match=rf"version is 1.0, wanted 1.2.3; build one with `backend` {backend}"
    ):
        open_unet(bundle, backend)
    with pytest.raises(BundleError, match=rf"no {backend} engine of vae_decoder; build one"):
        open_engine(bundle, read_manifest(bundle), "vae_decoder", backend)
    assert not machine.cudas


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_library_that_is_not_installed(bundle: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flavor = FLAVORS[backend]
    monkeypatch.setitem(sys.modules, flavor.module, None)
    with pytest.raises(MissingDependencyError, match=rf'pip install "controlnext\[{flavor.extra}\]"'):
        open_unet(bundle, backend)


@pytest.mark.usefixtures("machine")
def test_the_processor_and_gpus_that_are_not_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="TensorRT does not run on device cpu; set `device` to cuda:0"):
        select_backend("tensorrt", "cpu")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        select_backend("tensorrt", "gpu")
    monkeypatch.setattr("controlnext.engines.tensorrt.backend.find_gpu", lambda _index: None)
    with pytest.raises(
        InputError, match="TensorRT-RTX needs an NVIDIA GPU and finds no cuda:1; check the driver, or set"
    ):
        open_unet(bundle, "tensorrt-rtx", device="cuda:1")


def test_the_real_library_gives_its_reason(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX itself, which needs no GPU to see that these bytes are no engine."""
    library = pytest.importorskip("tensorrt_rtx")
    put_in_place(monkeypatch, bundle)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    write_engine(bundle, "tensorrt-rtx", version=library.__version__)
    with pytest.raises(WorkError, match=r"TensorRT-RTX cannot load .*model\.engine: \[.*Error Code"):
        open_unet(bundle, "tensorrt-rtx")


def test_the_stand_in_is_of_use() -> None:
    """It finds nothing at addresses that were given back, and notices what is left."""
    cuda = HostCuda()
    address = cuda.allocate(4)
    with pytest.raises(AssertionError, match="memory is left"):
        cuda.close()
    cuda.free(address)
    with pytest.raises(KeyError):
        cuda.read(address, (1,), np.float32)
    assert set(HARDWARE) == set(BACKENDS)
