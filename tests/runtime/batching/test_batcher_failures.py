"""The batcher: requests that are cancelled, refused or fail, and its end; the others go on."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from controlnext.errors import InputError, OutOfMemoryError, QueueFullError, WorkError
from controlnext.runtime import Batcher, Pipeline, Step
from controlnext.runtime.denoise import Denoising
from support.fake_bundle import write_fake_bundle
from support.gate import PATIENCE, Gate, until
from support.image_calls import HEIGHT, WIDTH, arguments


def test_a_cancelled_request_stops_within_a_step(warm: Pipeline, gate: Gate) -> None:
    steps: list[Step] = []
    with Batcher(warm) as batcher:
        future = batcher.submit(**arguments(num_inference_steps=50), on_step=steps.append)
        gate.wait()
        gate.let(2)
        assert future.cancel()
        gate.open()
        until(lambda: batcher.running == 0)
        assert wait([future], PATIENCE).done
        with pytest.raises(CancelledError):
            future.result()
        assert len(gate.runs) <= 3
        assert batcher.submit(**arguments()).result(PATIENCE).latents.shape == (1, 4, 2, 3)
    assert [step.index for step in steps] == [0, 1]


def test_one_that_is_cancelled_does_not_disturb_those_beside_it(warm: Pipeline, gate: Gate) -> None:
    with Batcher(warm) as batcher:
        leaving = batcher.submit(**arguments(num_inference_steps=20, seed=1))
        gate.wait()
        staying = batcher.submit(**arguments(num_inference_steps=6, seed=2))
        gate.let(3)
        leaving.cancel()
        gate.open()
        given = staying.result(PATIENCE).latents
    np.testing.assert_allclose(given, warm(**arguments(num_inference_steps=6, seed=2)).latents, atol=1e-5)


def test_a_full_queue_refuses_until_somebody_leaves_it(warm: Pipeline, gate: Gate) -> None:
    """Cancelling one that waits makes room at once; those that wait come in their order."""
    done: list[int] = []

    def submit(number: int) -> Future[Any]:
        future = batcher.submit(**arguments(seed=number))
        future.add_done_callback(lambda _future: done.append(number))
        return future

    with Batcher(warm, max_rows=1, max_waiting=2) as batcher:
        first, second, third = (submit(number) for number in range(3))
        gate.wait()
        assert (batcher.running, batcher.waiting) == (1, 2)
        with pytest.raises(QueueFullError, match="2 requests wait already") as refused:
            submit(3)
        assert refused.value.waiting == 2
        assert second.cancel()
        assert batcher.waiting == 1
        fourth = submit(4)
        gate.open()
        wait([first, third, fourth], PATIENCE)
    assert done == [1, 0, 2, 4]


def test_without_a_queue_as_many_as_run_are_taken(warm: Pipeline, gate: Gate) -> None:
    with Batcher(warm, max_rows=1, max_waiting=0) as batcher:
        assert not batcher.full
        batcher.submit(**arguments())
        assert batcher.full
        with pytest.raises(QueueFullError):
            batcher.submit(**arguments())
        gate.open()


def test_bad_input_is_the_error_of_its_future_alone(warm: Pipeline) -> None:
    with Batcher(warm) as batcher:
        good = batcher.submit(**arguments())
        bad = [
            batcher.submit(**arguments(seed="x")),
            batcher.submit(**arguments(height=-1)),
            batcher.submit(**arguments(control_scale=float("nan"))),
            batcher.submit(**arguments(sampler="none")),
        ]
        for future, argument in zip(bad, ("seed", "height", "control_scale", "sampler"), strict=True):
            error = future.exception(PATIENCE)
            assert isinstance(error, InputError)
            assert error.argument == argument
        with pytest.raises(TypeError, match="colour"):
            batcher.submit(**arguments(), colour="red")
        assert good.result(PATIENCE).latents.shape == (1, 4, HEIGHT // 8, WIDTH // 8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_whose_numbers_overflow_fails_alone(warm: Pipeline) -> None:
    with Batcher(warm) as batcher:
        good = batcher.submit(**arguments(seed=2))
        large = np.full((1, 4, HEIGHT // 8, WIDTH // 8), 3e38, np.float32)
        bad = batcher.submit(**arguments(latents=large, guidance_scale=1e30))
        assert isinstance(bad.exception(PATIENCE), WorkError)
        np.testing.assert_allclose(
            good.result(PATIENCE).latents, warm(**arguments(seed=2)).latents, atol=1e-5
        )


@pytest.mark.parametrize("failure", [WorkError("bad rows"), MemoryError("no room")])
def test_an_engine_that_fails_for_one_runs_the_others(
    failure: Exception, warm: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails is run request by request; a lack of memory names what saves memory."""
    engine = warm.bundle.engine("unet")
    run = engine._run

    def failing(feed: dict[str, np.ndarray], replaced: set[str]) -> dict[str, np.ndarray]:
        if (feed["control_scale"] == 0.25).any():
            raise failure
        return run(feed, replaced)

    gate = Gate(engine, monkeypatch)
    gate._engine_run = failing  # type: ignore[assignment]
    with Batcher(warm) as batcher:
        good = batcher.submit(**arguments(seed=2))
        gate.wait()
        bad = batcher.submit(**arguments(control_scale=0.25))
        until(lambda: len(batcher._ready) == 2)
        gate.open()
        error = bad.exception(PATIENCE)
        assert isinstance(error, OutOfMemoryError if isinstance(failure, MemoryError) else WorkError)
        assert good.result(PATIENCE).latents.shape == (1, 4, HEIGHT // 8, WIDTH // 8)


def test_an_observer_of_steps_that_raises_ends_its_own_request(warm: Pipeline) -> None:
    def refuse(step: Step) -> None:
        raise WorkError(f"enough after {step.index}")

    with Batcher(warm) as batcher:
        error = batcher.submit(**arguments(), on_step=refuse).exception(PATIENCE)
        assert str(error) == "enough after 0"
        assert batcher.submit(**arguments()).exception(PATIENCE) is None


def test_an_observer_of_steps_that_wants_to_exit_ends_its_own_request(warm: Pipeline) -> None:
    def leave(_step: Step) -> None:
        raise SystemExit(3)

    with Batcher(warm) as batcher:
        assert isinstance(batcher.submit(**arguments(), on_step=leave).exception(PATIENCE), SystemExit)
        assert batcher.submit(**arguments()).exception(PATIENCE) is None


def test_a_bug_in_a_round_is_the_error_of_its_requests(
    warm: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request waits for ever."""
    monkeypatch.setattr(Denoising, "done", property(lambda _run: 1 / 0))
    with Batcher(warm) as batcher:
        assert isinstance(batcher.submit(**arguments()).exception(PATIENCE), ZeroDivisionError)
        monkeypatch.undo()
        assert batcher.submit(**arguments()).exception(PATIENCE) is None


def test_closing_finishes_what_was_submitted(warm: Pipeline) -> None:
    with Batcher(warm, max_rows=2) as batcher:
        futures = [batcher.submit(**arguments(seed=seed)) for seed in range(5)]
    assert all(future.done() for future in futures)
    assert futures[4].result().latents.shape == (1, 4, HEIGHT // 8, WIDTH // 8)
    with pytest.raises(InputError, match="the batcher is closed"):
        batcher.submit(**arguments())
    with pytest.raises(InputError, match="the batcher is closed"), batcher:
        pass
    batcher.close()


@pytest.mark.parametrize("where", ["on_step", "callback"])
def test_it_can_be_closed_from_a_callback(warm: Pipeline, where: str) -> None:
    """In the batcher's own threads; what was submitted is finished."""
    batcher, submitted = Batcher(warm), Event()

    def close_at_once(_step: object) -> None:
        submitted.wait(PATIENCE)
        batcher.close()

    on_step = close_at_once if where == "on_step" else None
    future = batcher.submit(**arguments(num_inference_steps=30), on_step=on_step)
    other = batcher.submit(**arguments(num_inference_steps=40))
    submitted.set()
    if where == "callback":
        future.add_done_callback(lambda _future: batcher.close())
    assert future.exception(PATIENCE) is None
    assert other.exception(PATIENCE) is None
    with pytest.raises(InputError, match="the batcher is closed"):
        batcher.submit(**arguments())
    batcher.close()


def test_a_process_may_end_while_requests_run(tmp_path: Path) -> None:
    """Without closing anything: they are cancelled, and the process ends as it wants to."""
    bundle = write_fake_bundle(tmp_path / "bundle")
    program = f"""
import sys
from threading import Event
import numpy as np
from controlnext.runtime import Batcher, Pipeline
batcher, running = Batcher(Pipeline.load({str(bundle)!r}, cache=False), max_rows=2), Event()
image = np.zeros((128, 128, 3), np.uint8)
for _ in range(4):
    batcher.submit("a", control_image=image, num_inference_steps=900, on_step=lambda _step: running.set())
running.wait(60)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("leave", ["close", "error"])
def test_cancelling_while_closing_leaves_nothing_running(warm: Pipeline, gate: Gate, leave: str) -> None:
    def work() -> None:
        with Batcher(warm, max_rows=2) as batcher:
            futures.extend(batcher.submit(**arguments(num_inference_steps=50)) for _ in range(4))
            gate.wait()
            gate.open()
            if leave == "error":
                raise KeyError("of the block")
            batcher.close(cancel=True)

    futures: list[Future[Any]] = []
    if leave == "error":
        with pytest.raises(KeyError):
            work()
    else:
        work()
    assert all(future.cancelled() for future in futures)
    assert len(gate.runs) <= 3


@pytest.mark.parametrize(("name", "value"), [("max_rows", 0), ("max_rows", 1.5), ("max_waiting", -1)])
def test_limits_that_make_no_sense_are_refused(warm: Pipeline, name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} is {value}; it must be an integer of at least") as refused:
        Batcher(warm, **{name: value})  # type: ignore[arg-type]
    assert refused.value.argument == name
