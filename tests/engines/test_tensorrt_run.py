"""Built engines of both libraries, run on a stand-in for the GPU: what is sent there, and when."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.errors import InputError
from support.fake_bundle import fake_denoiser, write_fake_bundle
from support.fake_unet import check_unet, open_unet, unet_feed
from support.recipe import rand
from support.stand_in_gpu import Machine, put_in_place, write_engine

BACKENDS = list(FLAVORS)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", text_encoders=False)


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for backend in BACKENDS:
        write_engine(bundle, backend)
    return put_in_place(monkeypatch, bundle)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("machine")
def test_a_built_engine_gives_what_it_computes(bundle: Path, backend: str) -> None:
    """At several sizes up and down, and of arrays that are not contiguous."""
    with open_unet(bundle, backend, device="cuda:0") as engine:
        assert engine.backend == f"{backend} on cuda:0 (NVIDIA RTX 4000)"
        for batch, height, width in ((2, 3, 5), (2, 3, 5), (1, 2, 2), (4, 6, 6), (1, 2, 2), (2, 3, 5)):
            check_unet(engine, unet_feed(batch, height, width))
        turned = unet_feed()
        turned["sample"] = rand(9, 2, 4, 5, 3).transpose(0, 1, 3, 2)
        check_unet(engine, turned)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stays_is_sent_to_the_gpu_once(bundle: Path, machine: Machine, backend: str) -> None:
    feed = unet_feed()
    changing = {name: feed.pop(name) for name in ("sample", "timestep")}
    with open_unet(bundle, backend) as engine:
        bound = engine.bind(feed)
        for step in range(4):
            changing["sample"] = rand(step, 2, 4, 3, 5)
            wanted = fake_denoiser({**feed, **changing}).astype(np.float32)
            np.testing.assert_array_equal(bound.run(changing)["noise_pred"], wanted)
        counts = machine.cuda.counts
        assert counts["upload"] == len(feed) + 4 * len(changing)
        activations = backend == "tensorrt"
        assert counts["allocate"] == len(feed) + len(changing) + 1 + activations
        assert counts["synchronize"] == 4
        assert len(machine.shapes_set) == len(feed) + len(changing)


def test_buffers_and_shapes_stay_while_sizes_fit(bundle: Path, machine: Machine) -> None:
    with open_unet(bundle, "tensorrt") as engine:
        # inputs, output, and what contexts share
        buffers = len(engine.inputs) + 2
        check_unet(engine, unet_feed(4, 6, 6))
        assert machine.cuda.counts["allocate"] == buffers
        check_unet(engine, unet_feed(2, 3, 5))
        check_unet(engine, unet_feed(2, 3, 5, seed=1))
        assert machine.cuda.counts["allocate"] == buffers
        assert len(machine.shapes_set) == 2 * len(engine.inputs)
        assert len(machine.cuda.memory) == buffers


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        (
            unet_feed(2, 7, 5),
            r"unet: sample has shape \(2, 4, 7, 5\), but the engine was built for \(1, 4, 2, 2\) to"
            r" \(4, 4, 6, 6\), while `backend` onnxruntime accepts any size; build one with `backend`"
            r" tensorrt, `height` MIN:OPT:MAX$",
        ),
        (unet_feed(5, 3, 1), r"`batch` MIN:OPT:MAX, `width` MIN:OPT:MAX$"),
        (
            {**unet_feed(), "encoder_hidden_states": rand(0, 2, 8, 16)},
            r"encoder_hidden_states has shape \(2, 8, 16\), .* \(4, 7, 16\); set `backend` to onnxruntime",
        ),
    ],
)
def test_sizes_that_the_engine_was_not_built_for(
    bundle: Path, machine: Machine, feed: dict[str, np.ndarray], message: str
) -> None:
    with open_unet(bundle, "tensorrt") as engine:
        with pytest.raises(InputError, match=message):
            engine.run(feed)
        assert not machine.cuda.counts["upload"]
        check_unet(engine, unet_feed())


def test_runs_at_the_same_sizes_are_repeated_as_a_graph(bundle: Path, machine: Machine) -> None:
    """TensorRT: the first run is none; other sizes are recorded as well."""
    with open_unet(bundle, "tensorrt") as engine:
        counts = machine.cuda.counts
        for seed in range(3):
            check_unet(engine, unet_feed(seed=seed))
        assert (counts["record"], counts["replay"], counts["forget"]) == (1, 2, 0)
        for seed in range(3):
            check_unet(engine, unet_feed(4, 6, 6, seed))
        assert (counts["record"], counts["replay"], counts["forget"]) == (2, 4, 0)
    assert counts["forget"] == 2


def test_work_that_cannot_be_recorded_runs_without(
    bundle: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with open_unet(bundle, "tensorrt") as engine:
        machine.cuda.records_fail = True
        for seed in range(3):
            check_unet(engine, unet_feed(seed=seed))
    assert machine.cuda.counts["replay"] == 0
    assert caplog.text.count("continuing without a CUDA graph") == 1


@pytest.mark.parametrize("graphs", [True, False])
def test_tensorrt_rtx_repeats_runs_itself(bundle: Path, machine: Machine, graphs: bool) -> None:
    backend = TensorRtRtxBackend(graphs=graphs)
    with backend.open(bundle, read_manifest(bundle), "unet") as engine:
        for seed in range(3):
            check_unet(engine, unet_feed(seed=seed))
    assert machine.cuda.counts["record"] == 0
    assert getattr(machine.config, "cuda_graph_strategy", None) == ("whole" if graphs else None)


def test_graphs_can_be_left_out(bundle: Path, machine: Machine) -> None:
    with TensorRtBackend(graphs=False).open(bundle, read_manifest(bundle), "unet") as engine:
        for seed in range(3):
            check_unet(engine, unet_feed(seed=seed))
    assert machine.cuda.counts["record"] == 0


def test_compiled_kernels_are_kept_beside_the_engine(bundle: Path, machine: Machine) -> None:
    """Given to the library at the next start; written again only where something was compiled."""
    kernels = bundle / "engines" / "tensorrt-rtx-portable" / "unet" / "kernels"
    open_unet(bundle, "tensorrt-rtx", cache=False).close()
    assert not kernels.exists()
    open_unet(bundle, "tensorrt-rtx").close()
    assert not machine.kernels_given
    written = kernels.stat().st_ino
    open_unet(bundle, "tensorrt-rtx").close()
    assert machine.kernels_given == [b"compiled for sizes"]
    assert kernels.stat().st_ino == written
    machine.kernels = b"compiled for more sizes"
    open_unet(bundle, "tensorrt-rtx").close()
    open_unet(bundle, "tensorrt-rtx").close()
    assert machine.kernels_given[-1] == machine.kernels


def test_kernels_that_do_not_suit_are_replaced(
    bundle: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of another GPU, which the library refuses; damaged ones it never sees."""
    caplog.set_level(logging.INFO)
    place = bundle / "engines" / "tensorrt-rtx-portable" / "unet"
    open_unet(bundle, "tensorrt-rtx").close()
    machine.accepts_kernels = False
    written = (place / "kernels").stat().st_ino
    open_unet(bundle, "tensorrt-rtx").close()
    assert "for another GPU or version" in caplog.text
    assert (place / "kernels").stat().st_ino != written
    (place / "kernels" / "kernels.bin").write_bytes(b"damaged")
    open_unet(bundle, "tensorrt-rtx").close()
    assert b"damaged" not in machine.kernels_given
    with open_unet(bundle, "tensorrt-rtx") as engine:
        check_unet(engine, unet_feed())


def test_only_tensorrt_rtx_compiles_kernels(bundle: Path, machine: Machine) -> None:
    open_unet(bundle, "tensorrt").close()
    assert not list(bundle.glob("engines/tensorrt-*/unet/kernels"))
    assert not machine.kernels_given


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_gives_everything_back(bundle: Path, machine: Machine, backend: str) -> None:
    """The stand-in refuses to close while memory is left on it."""
    engine = open_unet(bundle, backend)
    bound = engine.bind(unet_feed())
    bound.run({})
    bound.run({})
    engine.close()
    assert machine.cuda.closed
    engine.close()
    with pytest.raises(InputError, match="unet is closed"):
        bound.run({})
