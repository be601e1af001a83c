"""TensorRT's execution contexts, one for each set of shapes with its graph, on a stand-in for the GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from controlnext.bundle.reader import read_manifest
from controlnext.engines import Engine
from controlnext.engines.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend, TrtBackend
from controlnext.engines.tensorrt.contexts import MOST_CONTEXTS
from controlnext.errors import WorkError
from support.fake_bundle import write_fake_bundle
from support.fake_unet import check_unet, open_unet, unet_feed
from support.stand_in_gpu import ACTIVATION_SIZE, Machine, _replay, put_in_place, write_engine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_fake_bundle(tmp_path_factory.mktemp("contexts") / "bundle", text_encoders=False)
    for backend in ("tensorrt", "tensorrt-rtx"):
        write_engine(path, backend)
    return path


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return put_in_place(monkeypatch, bundle)


@pytest.fixture
def engine(bundle: Path, machine: Machine) -> Iterator[Engine]:  # noqa: ARG001
    with open_unet(bundle, "tensorrt") as opened:
        yield opened


def _counts(machine: Machine) -> tuple[int, ...]:
    return tuple(machine.cuda.counts[name] for name in ("record", "replay", "forget"))


def test_shapes_that_take_turns_are_recorded_once_each(engine: Engine, machine: Machine) -> None:
    """Rows that change from run to run, as with a batcher, and two sizes."""
    shapes = [(4, 6, 6), (2, 6, 6), (3, 3, 5)]
    for seed in range(4):
        for shape in shapes:
            check_unet(engine, unet_feed(*shape, seed))
    assert _counts(machine) == (3, 9, 0)
    assert len(machine.shapes_set) == len(shapes) * len(engine.inputs)
    assert len(machine.contexts) == len(shapes)


def test_a_buffer_that_grows_makes_all_graphs_stale(engine: Engine, machine: Machine) -> None:
    """Contexts get its new address, and their work is recorded again."""
    for _ in range(2):
        check_unet(engine, unet_feed(1, 3, 5))
        check_unet(engine, unet_feed(2, 3, 5))
    # the second one grew the buffers of the first
    assert _counts(machine) == (1, 1, 0)
    check_unet(engine, unet_feed(1, 3, 5))
    assert _counts(machine) == (2, 2, 0)
    check_unet(engine, unet_feed(2, 6, 5))
    for seed in range(3):
        for rows in (1, 2):
            check_unet(engine, unet_feed(rows, 3, 5, seed))
    assert _counts(machine) == (4, 6, 2)


def test_the_least_recently_used_context_takes_other_shapes(engine: Engine, machine: Machine) -> None:
    check_unet(engine, unet_feed(4, 6, 6))
    shapes = [(rows, size, size) for rows in (1, 2) for size in range(2, 7)]
    for shape in shapes:
        for seed in range(2):
            check_unet(engine, unet_feed(*shape, seed))
    assert len(machine.contexts) == MOST_CONTEXTS < len(shapes)
    recorded, replayed, forgotten = _counts(machine)
    assert (recorded, replayed, forgotten) == (len(shapes), len(shapes), len(shapes) - MOST_CONTEXTS)
    for shape in shapes[-MOST_CONTEXTS:]:
        check_unet(engine, unet_feed(*shape))
    assert _counts(machine) == (recorded, replayed + MOST_CONTEXTS, forgotten)
    check_unet(engine, unet_feed(*shapes[0]))
    assert _counts(machine) == (recorded, replayed + MOST_CONTEXTS, forgotten + 1)


def test_no_room_for_another_context(
    engine: Engine, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that are there take turns."""
    caplog.set_level(logging.INFO)
    machine.most_contexts = 2
    for seed in range(3):
        for rows in (4, 2, 1):
            check_unet(engine, unet_feed(rows, seed=seed))
    assert caplog.text.count("continuing with 2 execution contexts: TensorRT cannot start") == 1
    assert len(machine.contexts) == 2


def test_no_room_for_a_larger_buffer(engine: Engine, machine: Machine) -> None:
    """Only that run fails."""
    for seed in range(2):
        check_unet(engine, unet_feed(2, 3, 5, seed))
    machine.cuda.allocations_fail = True
    with pytest.raises(WorkError, match="out of memory"):
        engine.run(unet_feed(4, 6, 6))
    machine.cuda.allocations_fail = False
    for seed in range(3):
        check_unet(engine, unet_feed(2, 3, 5, seed))
        check_unet(engine, unet_feed(4, 6, 6, seed))


@pytest.mark.parametrize(("backend", "graphs"), [(TensorRtBackend, False), (TensorRtRtxBackend, True)])
def test_without_recordings_one_context_takes_all_shapes(
    bundle: Path, machine: Machine, backend: type[TrtBackend], graphs: bool
) -> None:
    with backend(graphs=graphs).open(bundle, read_manifest(bundle), "unet") as engine:
        for seed in range(2):
            for rows in (4, 2, 1):
                check_unet(engine, unet_feed(rows, seed=seed))
        assert len(machine.contexts) == 1
        assert len(machine.shapes_set) == 6 * len(engine.inputs)


def test_an_engine_knows_its_largest_batch(engine: Engine) -> None:
    assert engine.most_rows == 4


def test_the_stand_in_refuses_what_a_gpu_punishes(engine: Engine, machine: Machine) -> None:
    for seed in range(2):
        check_unet(engine, unet_feed(2, 3, 5, seed))
    contexts = engine._contexts  # type: ignore[attr-defined]
    (context,) = contexts._kept.values()
    native = context.native
    record = partial(machine.cuda.record, partial(native.execute_async_v3, machine.cuda.stream))
    with pytest.raises(AssertionError, match="two recordings of a context"):
        record()
    native.set_input_shape("sample", (1, 4, 3, 5))
    with pytest.raises(AssertionError, match="replayed after its context changed"):
        machine.cuda.replay(context.recorded)
    with pytest.raises(AssertionError, match="recorded before the shapes were in use"):
        record()
    other = contexts._loaded.make_context()
    with pytest.raises(AssertionError, match="too little memory"):
        other.set_device_memory(contexts._activations, ACTIVATION_SIZE - 1)
    with pytest.raises(KeyError):
        other.execute_async_v3(machine.cuda.stream)
    with pytest.raises(AssertionError, match="replayed without its context"):
        _replay(lambda: None, ())


def test_the_real_library_has_every_call() -> None:
    """TensorRT-RTX's, which has TensorRT's interface."""
    library = pytest.importorskip("tensorrt_rtx")
    assert library.ExecutionContextAllocationStrategy.USER_MANAGED
    assert "memory: " in library.IExecutionContext.set_device_memory.__doc__
    assert "size: " in library.IExecutionContext.set_device_memory.__doc__
    assert library.IRuntimeConfig.set_execution_context_allocation_strategy
    assert library.ICudaEngine.device_memory_size_v2
